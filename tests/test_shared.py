"""What people pass on names the data, never the folders in which they lie."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

import cae_jax
from cae_jax.cli import benchmark
from tests.conftest import DENSE

SMALL = dataclasses.replace(DENSE, train_examples=None, test_examples=None, batch_size=8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home of a user, with images, a config and runs on them."""
    folder = tmp_path / "home" / "j.doe"
    photos = folder / "family" / "photos"
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(photos / f"{i}.png")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USER", "j.doe")
    config = dataclasses.replace(SMALL, data=str(photos))
    cae_jax.fit(config, folder / "run", data_dir=folder / "prepared")
    (folder / "mine.py").write_text(
        "from cae_jax import TrainConfig\n\n\ndef get_config():\n"
        f"    return TrainConfig(model='simple', data={str(photos)!r}, batch_size=8, epochs=1)\n"
    )
    return folder


def leaks(path):
    """The files at a path, or in a zip archive there, that hold the user's name or a folder's."""
    if path.is_dir():
        return [leak for each in path.rglob("*") if each.is_file() for leak in leaks(each)]
    contents = {path.name: path.read_bytes()}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            contents |= {name: archive.read(name) for name in archive.namelist()}
    words = (b"j.doe", b"family")
    return [name for name, content in contents.items() if any(word in content for word in words)]


def test_no_artefact_holds_a_path_of_its_author(home, command, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    run, data = home / "run", ("--data-dir", home / "prepared")
    for name in ("stablehlo", "safetensors", "onnx"):
        command("export", run, "--format", name, "--out", out / f"model.{name}")
    command("export", run, "--format", "hub", "--out", out / "hub")
    table, figure = out / "table.json", out / "figure.png"
    command("evaluate", run, *data, "--json", table, "--figure", figure)
    command("report", run, *data, "--out", out / "report.html")
    command("reconstruct", run, home / "family" / "photos", "--out", out / "images")
    assert len([path for path in out.rglob("*") if path.is_file()]) == 3 + 4 + 2 + 1 + 20
    assert leaks(out) == []
    assert json.loads(table.read_text())["dataset"] == "photos"
    assert '"data": "photos"' in (out / "report.html").read_text()
    # Of the run itself, its config needs the path, to resume.
    others = [path for path in run.iterdir() if path.name != "checkpoints"]
    assert [leak for path in others for leak in leaks(path)] == ["config.json"]
    assert json.loads((run / "config.json").read_text())["data"].startswith(str(home))


def test_json_is_what_was_measured(tmp_path, monkeypatch):
    """Also where the home is the root, as in containers; without folders in a compiler's error."""
    why = "matmul: native is unavailable"
    error = f"{why}: its library cannot be kept ({tmp_path}/j.doe/.cache/cae_jax is full: 0 bytes)"
    measured = {"backend": error, "unit": "images/s"}
    monkeypatch.setattr(benchmark, "time_epochs", lambda flags: dict(measured))
    monkeypatch.setattr(benchmark.cache, "use_compilation_cache", lambda: None)
    for folder in (tmp_path / "j.doe", "/"):
        monkeypatch.setenv("HOME", str(folder))
        benchmark.run(benchmark.Flags(json=tmp_path / "times.json"))
        assert leaks(tmp_path / "times.json") == []
        found = json.loads((tmp_path / "times.json").read_text())
        assert (found["backend"], found["unit"]) == (why, "images/s")


@pytest.mark.slow
def test_nor_do_those_that_take_long(home, command, tmp_path):
    out, config = tmp_path / "out", ("--config", home / "mine.py")
    out.mkdir()
    command("export", home / "run", "--format", "keras", "--out", out / "model.keras")
    times = ("--timed", 1, "--discard", 0, "--json", out / "times.json")
    command("benchmark", *config, *times, "--data-dir", home / "prepared")
    assert len([*out.iterdir()]) == 2
    assert leaks(out) == []
    assert json.loads((out / "times.json").read_text())["config"] == "mine"
