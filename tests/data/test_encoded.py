"""Training images that are decoded in each epoch: the bits of a run on prepared images."""

import dataclasses
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

import cae_jax
from cae_jax import TrainConfig, UserError, data
from cae_jax.data import workers
from tests.conftest import needs_native, signal_in_chunk
from tests.runs.test_reliability import assert_same_end

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 12, 10, 3), np.uint8)
ONE = 8 * 8 * 3  # bytes of an image
VALIDATION = 14 * ONE  # of a `split` of 0.7


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    return tmp_path / "prepared" / "cae_images"


@pytest.fixture
def photos(tmp_path):
    """A folder of JPEG files in two classes, of which one is not readable."""
    path = tmp_path / "photos"
    for i, pixels in enumerate(PIXELS):
        file = path / "ab"[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    (path / "a" / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    return path


def configs(photos, **fields):
    """The config of images that are prepared, and of some that are decoded in each epoch."""
    options = {"image_size": 8, "batch_size": 8, "skip_unreadable": True, "split": 0.7}
    network = {"model": "simple", "epochs": 3, "warmup_steps": 2, "optimizer": "adam"}
    once = TrainConfig(**{"data": str(photos), **options, **network, **fields})
    return once, dataclasses.replace(once, decode="each-epoch")


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 1),
        pytest.param({"train_examples": 30}, 2, marks=pytest.mark.slow),
        ({"channels": 1, "train_examples": 30}, 1),
        ({"white": "auto", "image_size": None}, 1),
        ({"pairs": ("a", "b")}, 1),
    ],
)
def test_images_are_those_that_are_prepared(photos, root, monkeypatch, fields, count):
    monkeypatch.setattr(workers, "_PATIENCE", 0)
    if "pairs" in fields:
        for file in (photos / "b").iterdir():
            file.rename(file.with_stem(f"{int(file.stem) - 1}"))
    once, each_epoch = configs(photos, **fields)
    expected, found = (data.load(each, workers=count) for each in (once, each_epoch))
    np.testing.assert_array_equal(np.asarray(found.train), expected.train)
    np.testing.assert_array_equal(found.validation, expected.validation)
    assert (found.digest, found.levels) == (expected.digest, expected.levels)
    assert data.load(each_epoch, workers=1, verify_data=True).digest == expected.digest
    wanted, places = np.array([7, 2, 7, 0]), np.array([4, 0, 1, 2])
    some = found.train.read(wanted, places, 5)
    np.testing.assert_array_equal(some[places], expected.train[wanted])
    written = {path.name: path.stat().st_size for path in root.glob("*/train_*")}
    assert written["train_checks.npy"] <= 128 + 8 * 60 < written["train_images.npy"]
    labels = [data.load_split(each, "train")[1] for each in (once, each_epoch)]
    assert (labels[0] is None) == ("pairs" in fields)
    np.testing.assert_array_equal(*labels)


def stops(config, folder, chunk, **options):
    """Trains until a signal comes after a chunk of steps; returns the steps."""
    return cae_jax.fit(config, folder, on_chunk=signal_in_chunk(chunk), **options).steps


@pytest.mark.slow
def test_a_run_ends_as_one_on_prepared_images(photos, tmp_path, caplog):
    """Killed in the middle of a chunk, and resumed on prepared images."""
    once, each_epoch = configs(photos)
    cae_jax.fit(once, tmp_path / "prepared_run")
    budget = VALIDATION + 2 * 2 * 8 * ONE
    assert stops(each_epoch, tmp_path / "run", 3, chunk_steps=1, device_budget=budget) == 3
    assert "It holds two chunks of 2 steps" in caplog.text
    cae_jax.fit(once, tmp_path / "run")
    assert_same_end(tmp_path / "run", tmp_path / "prepared_run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "backend"),
    [("none", "matmul"), pytest.param("mix", "native", marks=needs_native)],
)
def test_any_budget_gives_the_bits_of_prepared_images(photos, tmp_path, noise, backend):
    once, each_epoch = configs(photos, model="conv", optimizer="soap", noise=noise)
    cae_jax.fit(once, tmp_path / "prepared_run", backend=backend)
    validation = VALIDATION * (17 if noise != "none" else 1)
    budgets = [validation + 2 * steps * 8 * ONE for steps in (2, 1)]
    folder = tmp_path / "run"
    options = {"backend": backend, "chunk_steps": 1}
    assert stops(each_epoch, folder, 3, device_budget=budgets[0], **options) == 3
    assert stops(once, folder, 1, device_budget=budgets[1], **options) == 4
    assert stops(each_epoch, folder, 5, device_budget=budgets[1], **options) == 9
    cae_jax.fit(each_epoch, folder, device_budget=budgets[1])
    assert_same_end(folder, tmp_path / "prepared_run")
    cae_jax.fit(each_epoch, tmp_path / "resident", backend=backend)  # decoded at the start
    assert_same_end(tmp_path / "resident", folder)


@pytest.mark.slow
def test_a_population_ends_as_one_on_prepared_images(photos, tmp_path):
    budget = VALIDATION + 2 * 2 * 8 * ONE
    for name, one in zip(("prepared_runs", "runs"), configs(photos), strict=True):
        members = [dataclasses.replace(one, seed=seed) for seed in (0, 3)]
        limit = budget if name == "runs" else None
        cae_jax.fit_population(members, tmp_path / name, device_budget=limit)
    for seed in (0, 3):
        assert_same_end(*(tmp_path / name / f"seed={seed}" for name in ("runs", "prepared_runs")))


@pytest.mark.slow
def test_commands_take_a_run_whose_images_are_in_their_files(photos, tmp_path, command):
    once, each_epoch = configs(photos)
    said = []
    for one, place in zip((once, each_epoch), (tmp_path / "once", tmp_path / "other"), strict=True):
        cae_jax.fit(one, place / "run")
        tables = command("evaluate", place / "run")
        others = command("evaluate", place / "run", "--data", photos / "b")
        command("report", place / "run", "--out", place / "report.html")
        said.append([re.findall(r"^\|.*", each.stdout, re.M) for each in (tables, others)])
    assert said[0] == said[1]
    assert min(map(len, said[0])) > 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), r"1\.jpg cannot be read any more \(.*No such file"),
        (lambda file: file.write_bytes(b"\xff\xd8\xff"), "is not a readable image"),
        (lambda file: Image.new("RGB", (10, 12)).save(file), "it has other pixels than at first"),
        (lambda file: Image.new("L", (10, 12)).save(file), "it has other pixels than at first"),
    ],
)
def test_a_file_that_changes_is_named(photos, change, message):
    _, each_epoch = configs(photos, split=0.9)
    found = data.load(each_epoch, workers=1).train
    change(photos / "b" / "1.jpg")
    with pytest.raises(UserError, match=message) as error:
        np.asarray(found)
    assert re.search(
        r"restore it and start again: a training resumes after its last checkpoint$",
        str(error.value),
    )


def test_what_cannot_be_decoded_in_each_epoch_is_refused(tmp_path, photos):
    np.save(tmp_path / "images.npy", PIXELS)
    _, each_epoch = configs(tmp_path / "images.npy")
    with pytest.raises(UserError, match=r"images.npy is not a folder of image files, which alone"):
        data.load(each_epoch)
    for fields in ({"data": "mnist"}, {"frames": "all"}):
        with pytest.raises(UserError, match="`decode` is each-epoch; it takes a folder of image"):
            configs(photos, **fields)[1]


def test_a_disk_for_test_images_is_enough(photos, monkeypatch):
    once, each_epoch = configs(photos)
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(25 * ONE))
    with pytest.raises(UserError, match=r"a smaller `image_size`, or `decode='each-epoch'`$"):
        data.load(once, workers=1)
    assert len(data.load(each_epoch, workers=1).train) > 25
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(5 * ONE))
    with pytest.raises(UserError, match=r"0\.0 MB are free; free .* smaller `image_size`$"):
        data.load(dataclasses.replace(each_epoch, image_size=9), workers=1)
