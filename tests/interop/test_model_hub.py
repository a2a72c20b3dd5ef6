"""Folders for model hubs: their card by PyYAML, reading them back, and the upload by a fake."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import cae_jax
from cae_jax.config import to_dict
from cae_jax.interop import model_hub
from cae_jax.runs import history
from tests.helpers import assert_fails_in_one_line

FILES = ["README.md", "config.json", "history.csv", "model.safetensors"]
# A huggingface_hub that writes its calls to a file.
FAKE = """
import json


class HfApi:
    def __getattr__(self, name):
        def call(*arguments, **options):
            with open("calls.jsonl", "a") as file:
                print(json.dumps([name, arguments, options], default=str), file=file)
            if arguments == ("me/refused",):
                raise ConnectionError("no\\nnetwork")

        return call
"""


def export(folder, run, **options):
    model_hub.write(folder, run, cae_jax.load(run, backend="matmul"), **options)
    return folder


def header(folder):
    start, text, _ = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    assert start == ""
    return yaml.safe_load(text)


@pytest.fixture
def finished(copied):
    """A finished run whose best epoch is not the last one."""
    result = json.loads((copied / "result.json").read_text())
    result["best"] |= {"epoch": 1, "val_loss": 0.25, "val_psnr": 11.5}
    (copied / "result.json").write_text(json.dumps(result))
    return copied


def test_the_card_of_a_named_data_set(finished, tmp_path):
    final = json.loads((finished / "result.json").read_text())["final"]
    folder = export(tmp_path / "hub", finished, license="mit")
    found = header(folder)
    kind = "image-feature-extraction"
    metrics = [
        {"type": "bce", "value": final["val_loss"]},
        {"type": "psnr", "value": final["val_psnr"]},
    ]
    dataset = {"name": "fashion_mnist", "type": "fashion_mnist"}
    results = [{"task": {"type": kind}, "dataset": dataset, "metrics": metrics}]
    assert found == {
        "license": "mit",
        "library_name": "cae-jax",
        "pipeline_tag": kind,
        "tags": ["jax", "flax", "autoencoder"],
        "datasets": ["fashion_mnist"],
        "model-index": [{"name": "run", "results": results}],
    }
    assert sorted(path.name for path in folder.iterdir()) == FILES
    text = (folder / "README.md").read_text()
    assert "50,992 parameters, images of 28 x 28 x 1, code [32]." in text
    assert f"Validation: bce {final['val_loss']:.4f}, PSNR {final['val_psnr']:.2f} dB." in text
    best = header(export(tmp_path / "best", finished, best=True))
    assert best["license"] == "unknown"
    values = [each["value"] for each in best["model-index"][0]["results"][0]["metrics"]]
    assert values == [0.25, 11.5]


def test_the_card_of_a_denoiser_of_own_images(color_run, tmp_path):
    run = shutil.copytree(color_run[0], tmp_path / 'a: "b" # ö')
    found = header(export(tmp_path / "hub", run))
    assert "datasets" not in found
    assert found["pipeline_tag"] == "image-to-image"
    assert "denoising" in found["tags"]
    assert found["model-index"][0]["name"] == 'a: "b" # ö'
    for content in ("[]", '{"final": {"val_loss": NaN, "val_psnr": 1}}', "no JSON"):
        (run / "result.json").write_text(content)
        assert "model-index" not in header(export(tmp_path / "hub", run))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"noise": "none"}, "reconstructs images from their codes"),
        ({"noise": "gaussian"}, "removes gaussian noise of 0.5"),
        ({"noise": "mix"}, "removes noise of six kinds"),
        ({"pairs": ("day", "night")}, "turns images of the kind day into night"),
    ],
)
def test_the_task(fields, text):
    assert model_hub.task(cae_jax.TrainConfig(**fields)) == text


def test_the_folder_is_read_back(color_run, tmp_path):
    run, images = color_run
    folder = export(tmp_path / "hub", run)
    back, there = (cae_jax.load(each, backend="matmul") for each in (folder, run))
    assert to_dict(back.config) == to_dict(there.config)
    np.testing.assert_array_equal(back.encode(images), there.encode(images))
    assert history.of_run(folder) == history.of_run(run)
    again = export(tmp_path / "again", folder)
    for name in FILES[1:]:
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_commands_take_the_folder(dense_run, command, tmp_path, test_images):
    def run(*arguments):
        process = command(*arguments)
        assert process.returncode == 0, process.stderr
        return process.stdout

    Image.fromarray(test_images[0, ..., 0]).save(tmp_path / "boot.png")
    np.save(tmp_path / "some.npy", test_images[:3])
    size = run("export", dense_run, "--format", "hub").split()[1]
    folder = tmp_path / "dense-hub"
    assert size == f"{sum(path.stat().st_size for path in folder.iterdir()):,}"
    for name in ("dense-hub", dense_run):
        reconstructed = run("reconstruct", name, "boot.png", "--out", "out")
        assert reconstructed == run("reconstruct", dense_run, "boot.png", "--out", "out")
    assert re.search(r"\| dense-hub +\| simple +\| 1 ", run("evaluate", "dense-hub"))
    assert "\n| 2 | " in run("curves", "dense-hub")
    run("encode", "dense-hub", "some.npy", "--out", "codes.npz")
    run("decode", dense_run, "codes.npz", "--out", "decoded")  # the same parameters
    run("export", "dense-hub", "--format", "safetensors", "--out", "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (folder / FILES[3]).read_bytes()


@pytest.mark.slow
def test_training_and_report_take_the_folder(dense_run, command, tmp_path):
    export(tmp_path / "hub", dense_run)
    quick = ("--train-examples", 256, "--test-examples", 100, "--epochs", 1)
    train = command("train", "--config", "simple", *quick, "--from", "hub", "--workdir", "new")
    assert train.returncode == 0, train.stderr
    report = command("report", "hub", "--out", "report.html")
    assert report.returncode == 0, report.stderr


def test_folders_of_others_are_refused(dense_run, refuse, command, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    (tmp_path / "file").touch()
    shutil.copytree(dense_run, tmp_path / "run")
    hub = ("export", dense_run, "--format", "hub", "--out")
    for name, message in (
        ("other", "--out other is not empty and holds no model of this format; choose another"),
        ("run", "--out run is not empty"),
        ("file", "file cannot be written"),
    ):
        assert_fails_in_one_line(refuse(*hub, name), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other", "run"]
    # A model is replaced, with its history; what else lies there stays.
    command("export", "pretrained/wide", "--format", "hub", "--out", "model")
    (tmp_path / "model" / "notes.md").touch()
    (tmp_path / "model" / "result.json").touch()
    assert command(*hub, "model").returncode == 0
    assert cae_jax.load(tmp_path / "model").config.model == "simple"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [*FILES, "notes.md"]
    (tmp_path / "model" / "history.csv").unlink()
    command("export", "model", "--format", "hub", "--out", "model")
    assert not (tmp_path / "model" / "history.csv").exists()


def test_nothing_is_replaced_where_a_file_cannot_be_written(dense_run, tmp_path, monkeypatch):
    folder = export(tmp_path / "hub", dense_run)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(path, rows):
        raise OSError("no space left")

    monkeypatch.setattr(history, "write", full)
    with pytest.raises(cae_jax.UserError, match="hub cannot be written"):
        export(folder, "pretrained/simple")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_flags_of_other_formats_are_refused(dense_run, refuse):
    for arguments, message in (
        (("onnx", "--push", "me/x"), "--push is for the format hub; leave it out for onnx"),
        (("keras", "--license", "mit"), "--license is for the format hub"),
        (("hub", "--function", "encode"), "--function is for the formats stablehlo and onnx"),
    ):
        assert_fails_in_one_line(refuse("export", dense_run, "--format", *arguments), message)


def test_push(dense_run, command, tmp_path, monkeypatch):
    (tmp_path / "fake" / "huggingface_hub").mkdir(parents=True)
    (tmp_path / "fake" / "huggingface_hub" / "__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "fake")
    hub = ("export", dense_run, "--format", "hub", "--out", "hub", "--push")
    done = command(*hub, "me/x")
    assert done.stdout.splitlines()[-1] == "uploaded to me/x"
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    create, upload = calls
    assert create == ["create_repo", ["me/x"], {"exist_ok": True}]
    assert upload[:2] == ["upload_folder", []]
    patterns = sorted(upload[2].pop("allow_patterns"))
    assert (upload[2], patterns) == ({"repo_id": "me/x", "folder_path": "hub"}, FILES)
    failed = command(*hub, "me/refused")
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert "--push me/refused failed (no network); check the name, the network and" in line
    assert (tmp_path / "hub" / "README.md").exists()


def test_push_without_the_library(dense_run, refuse, tmp_path, monkeypatch):
    monkeypatch.setattr(model_hub.importlib.util, "find_spec", lambda _: None)
    process = refuse("export", dense_run, "--format", "hub", "--push", "me/x")
    assert_fails_in_one_line(process, "--push needs huggingface_hub; pip install")
    assert "[hub]" in process.stderr
    assert list(tmp_path.iterdir()) == []
