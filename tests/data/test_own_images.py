"""Images by a path: each kind of source, its splits, labels and refusals."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import struct
import sys
import unicodedata
import zipfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

import cae_jax
from cae_jax import TrainConfig, UserError, cli, data
from cae_jax.config import RUN_MARK
from cae_jax.data import path as paths
from cae_jax.data import sources
from cae_jax.data.conversion import Conversion, eight_bit_array
from cae_jax.data.images import take_images
from cae_jax.data.sources import arrays, folder

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 8, 8, 3), np.uint8)
LABELS = RNG.integers(0, 2, 24)
TEST_IMAGES = RNG.integers(0, 256, (6, 8, 8, 3), np.uint8)
TEST_LABELS = RNG.integers(0, 2, 6)
NAMES = ("cat", "dög 犬")
# One program for any number of epochs.
CONSTANT = {"model": "simple", "optimizer": "adam", "schedule": "constant", "warmup_steps": 0}


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch) -> Path:
    """An empty folder of prepared data, where all tests here prepare."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    return tmp_path / "prepared" / "cae_images"


def config(path, **fields) -> TrainConfig:
    return TrainConfig(**{"data": str(path), "batch_size": 4, **fields})


def splits(path, **fields):
    """Images and labels of training and test."""
    return [data.load_split(config(path, **fields), split) for split in ("train", "test")]


def check_whole(path, with_labels=True):
    """Both splits together are the images, each with its label."""
    (train, train_labels), (test, test_labels) = splits(path)
    assert len(train) > len(test) > 0
    found = np.concatenate([train, test])
    order = np.lexsort(found.reshape(24, -1).T)
    expected = np.lexsort(IMAGES.reshape(24, -1).T)
    np.testing.assert_array_equal(found[order], IMAGES[expected])
    if with_labels:
        labels = np.concatenate([train_labels, test_labels])
        np.testing.assert_array_equal(labels[order], LABELS[expected])
    else:
        assert train_labels is None
        assert test_labels is None


def check_own_splits(path, channels=3):
    """The splits are those of the source, in its order."""
    (train, train_labels), (test, test_labels) = splits(path)
    np.testing.assert_array_equal(train, IMAGES[..., :channels])
    np.testing.assert_array_equal(train_labels, LABELS)
    np.testing.assert_array_equal(test, TEST_IMAGES[..., :channels])
    np.testing.assert_array_equal(test_labels, TEST_LABELS)


def denied(path, message, **fields):
    with pytest.raises(UserError, match=message) as caught:
        splits(path, **fields)
    assert "\n" not in str(caught.value)


def png(image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


# One writer for each kind of source. They return the path.


def image_folder(folder, nested="any depth"):
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = folder / "my photos" / NAMES[label] / nested / f"image {i}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return folder / "my photos"


def npz_file(folder):
    np.savez(
        folder / "a.npz", x_train=IMAGES, y_train=LABELS, x_test=TEST_IMAGES, y_test=TEST_LABELS
    )
    return folder / "a.npz"


def npy_file(folder):
    np.save(folder / "a.npy", IMAGES / 255)
    return folder / "a.npy"


def idx_folder(folder):
    folder = folder / "idx files"
    folder.mkdir(parents=True)
    for split, images, labels in (
        ("train", IMAGES, LABELS),
        ("t10k", TEST_IMAGES, TEST_LABELS),
    ):
        content = struct.pack(">4I", 0x0803, len(images), 8, 8) + images[..., 0].tobytes()
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        content = struct.pack(">2I", 0x0801, len(labels)) + labels.astype(np.uint8).tobytes()
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(content)
    return folder


class Photos(tfds.core.GeneratorBasedBuilder):
    """A data set of TFDS as others prepare them, with an image in PNG."""

    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(8, 8, 3)),
            "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(IMAGES, LABELS),
            "test": self._generate_examples(TEST_IMAGES, TEST_LABELS),
        }

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            picture = Image.fromarray(image)
            yield i, {"picture": io.BytesIO(png(image)), "kind": int(label), "id": f"{i}"}
            picture.close()


def tfds_folder(folder, file_format="array_record"):
    builder = Photos(data_dir=str(folder))
    tfds.disable_progress_bar()
    builder.download_and_prepare(file_format=file_format)
    return Path(builder.data_dir)


def table(images, labels):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(image), "path": None} for image in images]
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(NAMES)}}
    columns = {"img": pa.array(rows, kind), "label": pa.array(labels, pa.int64())}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(metadata)


def parquet_folder(folder):
    (folder / "hub" / "data").mkdir(parents=True)
    for i in range(2):  # two files of one split
        part = slice(i * 12, i * 12 + 12)
        path = folder / "hub" / "data" / f"train-0000{i}-of-00002.parquet"
        parquet.write_table(table(IMAGES[part], LABELS[part]), path)
    path = folder / "hub" / "data" / "test-00000-of-00001.parquet"
    parquet.write_table(table(TEST_IMAGES, TEST_LABELS), path)
    return folder / "hub"


KINDS = [
    (image_folder, check_whole, NAMES),
    (npz_file, check_own_splits, ("0", "1")),
    (npy_file, partial(check_whole, with_labels=False), ()),
    (idx_folder, partial(check_own_splits, channels=1), ("0", "1")),
    (tfds_folder, check_own_splits, ("cat", "dog")),
    (parquet_folder, check_own_splits, NAMES),
]


@pytest.mark.parametrize(("write", "check", "classes"), KINDS)
def test_each_kind_is_read_again_without_its_files(write, check, classes, tmp_path, monkeypatch):
    path = write(tmp_path)
    check(path)
    monkeypatch.chdir(path.parent)
    located = data.located(config(path.name, channels=3))
    before, _ = data.load_split(located, "train")
    assert before.shape[1:] == (8, 8, 3)
    # A second start neither imports TFDS nor opens a file, from any folder.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    np.testing.assert_array_equal(data.load_split(located, "train")[0], before)
    assert data.class_names(located) == classes


@pytest.mark.slow
def test_a_run_and_the_images_it_was_trained_on(tmp_path, monkeypatch, caplog, capsys):
    path, run = image_folder(tmp_path), tmp_path / "run"
    monkeypatch.chdir(path.parent)
    training = config(path.name, epochs=1, test_examples=2, **CONSTANT)
    result = cae_jax.fit(training, run)
    kept = json.loads((run / "config.json").read_text("utf-8"))
    assert (kept["data"], kept["image_shape"]) == (str(path), [8, 8, 3])
    assert result.autoencoder.reconstruct(IMAGES).shape == IMAGES.shape
    monkeypatch.chdir(tmp_path)
    commands = [["evaluate", str(run)], ["report", str(run), "--out", str(tmp_path / "a.html")]]
    for command in commands:
        cli.main(command)
    assert "other images" not in caplog.text
    next(path.rglob("*.PNG")).write_bytes(png(np.full((8, 8, 3), 255, np.uint8)))
    for command in commands:
        caplog.clear()
        cli.main(command)
        assert f"{run} was trained on other images than {path} has now" in caplog.text
    (path / "cat" / "cut.png").write_bytes(png(IMAGES[0])[:-60])
    for command in commands:
        with pytest.raises(SystemExit):
            cli.main(command)
        error = capsys.readouterr().err
        assert f"the images of {run} cannot be read: {path / 'cat' / 'cut.png'} is not a" in error
        assert "; restore them as they were, or pass the --data-dir that has them" in error
        assert "skip" not in error


@pytest.mark.slow
def test_a_run_whose_images_have_moved(tmp_path, monkeypatch, capsys):
    path, new, run = image_folder(tmp_path), tmp_path / "new" / "place", tmp_path / "run"
    other = tmp_path / "other"
    other.mkdir()
    for i in range(3):  # too few to train on, and of another size
        Image.fromarray(IMAGES[i].repeat(2, 0).repeat(2, 1)).save(other / f"{i}.png")
    result = cae_jax.fit(config(path, epochs=1, **CONSTANT), run)
    once = cae_jax.fit(config(path, epochs=2, **CONSTANT), tmp_path / "once").autoencoder

    def evaluated(*arguments):
        capsys.readouterr()
        cli.main(["evaluate", str(run), "--json", str(tmp_path / "e.json"), *map(str, arguments)])
        values = json.loads((tmp_path / "e.json").read_text())
        return values["rows"][-1]["psnr"], values["dataset"], capsys.readouterr().out

    before = evaluated()
    new.parent.mkdir()
    path.rename(new)
    shutil.rmtree(tmp_path / "prepared")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(run)])
    assert "or their new path as --data" in capsys.readouterr().err
    found = evaluated("--data", new)
    assert (found[0], found[2]) == (before[0], before[2])
    psnr, name, table = evaluated("--data", other)
    originals = IMAGES[:3].repeat(2, 1).repeat(2, 2)
    shrunk = np.stack([np.asarray(Image.fromarray(x).resize((8, 8), 1)) for x in originals])
    errors = result.autoencoder.reconstruct(shrunk).astype(np.float64) - shrunk / 255
    expected = np.mean(-10 * np.log10((errors**2).mean((1, 2, 3))))
    np.testing.assert_allclose(psnr[0], expected, rtol=1e-5)
    assert (name, table.split("|")[1].strip()) == ("other", "on other")
    cli.main(["report", str(run), "--data", str(new), "--out", str(tmp_path / "r.html")])
    with pytest.raises(SystemExit):
        cli.main(["report", str(run), "--data", str(other)])
    assert f"--data {other} has other images than {run} was" in capsys.readouterr().err
    np.save(tmp_path / "others.npy", IMAGES)
    with pytest.raises(UserError, match=r"differs in data \(.*photos there, .*npy now\), epochs"):
        cae_jax.fit(config(tmp_path / "others.npy", epochs=2, **CONSTANT), run)
    with pytest.raises(UserError, match="differs in data"):
        cae_jax.fit(config(new, epochs=2, **CONSTANT, split=0.5), run)
    longer = cae_jax.fit(config(new, epochs=2, **CONSTANT), run).autoencoder
    assert json.loads((run / "config.json").read_text())["data"] == str(new)
    for a, b in zip(*map(jax.tree.leaves, (longer.params, once.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert evaluated()[1] == new.name


@pytest.mark.slow
def test_a_population_whose_images_have_moved(tmp_path, capsys):
    path, new, folder = image_folder(tmp_path), tmp_path / "new", tmp_path / "pop"

    def members(data, epochs=1):
        fields = {"epochs": epochs, "model": "simple", "optimizer": "adam"}
        return [config(data, seed=seed, **fields) for seed in (0, 1)]

    before = cae_jax.fit_population(members(path), folder)
    path.rename(new)
    shutil.rmtree(tmp_path / "prepared")
    shutil.rmtree(folder / "seed=1")  # which is trained again
    np.save(tmp_path / "others.npy", IMAGES)
    with pytest.raises(UserError, match="holds a population that differs in data"):
        cae_jax.fit_population(members(tmp_path / "others.npy"), folder)
    after = cae_jax.fit_population(members(new), folder)
    losses = [[m.val_loss for m in each.members.values()] for each in (before, after)]
    assert losses[0] == losses[1]
    kept = json.loads((folder / "members.json").read_text())["members"]
    assert {each["data"] for each in kept.values()} == {str(new)}
    # The first member has the old path.
    cli.main(["evaluate", str(folder / "seed=0"), str(folder / "seed=1"), "--data", str(new)])
    assert re.search(r"^\| seed=0 +\| \w+ +\| 2 ", capsys.readouterr().out, re.M)  # runs
    cli.main(["report", str(folder), "--data", str(new), "--out", str(tmp_path / "r.html")])


# Folders of images.


def without_classes(path):
    for image in path.rglob("*.PNG"):
        image.rename(path / f"{image.parent.parent.name} {image.name}")


STRANGE = "cat\udcff\nwith a line"


@pytest.mark.parametrize(
    ("change", "classes"),
    [
        (without_classes, ()),
        (lambda path: (path / NAMES[0]).rename(path / STRANGE), (STRANGE, NAMES[1])),
        (lambda path: (path / "cat" / "a.png").symlink_to(path / "cat" / "a.png"), NAMES),
        (lambda path: (path / "loop").symlink_to(path, target_is_directory=True), NAMES),
    ],
    ids=["no classes", "a name that no encoding has", "a link to itself", "a link above"],
)
def test_folders_are_read_whole(tmp_path, change, classes):
    path = image_folder(tmp_path)
    change(path)
    check_whole(path, with_labels=classes != ())
    assert data.class_names(config(path)) == classes
    where = {"data_dir": path / "cat"}  # among the images
    (first, _), (again, _) = (data.load_split(config(path), "train", **where) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_the_split_is_by_a_hash_of_the_path(tmp_path):
    path = image_folder(tmp_path)

    def expected(fraction):
        found = []
        for file in path.rglob("*.PNG"):
            key = unicodedata.normalize("NFC", file.relative_to(path).as_posix())
            number = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16)
            if number / 2**64 < fraction:
                found.append(np.asarray(Image.open(file)).tobytes())
        return set(found)

    for fraction in (0.9, 0.5):
        (train, _), (test, _) = splits(path, split=fraction)
        assert {image.tobytes() for image in train} == expected(fraction)
        assert {image.tobytes() for image in test} == expected(1) - expected(fraction)


def test_another_file_moves_none_between_the_splits(tmp_path):
    path = image_folder(tmp_path)
    before = [{image.tobytes() for image in images} for images, _ in splits(path)]
    extra = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    (path / "cat" / "a new one.png").write_bytes(png(extra))
    after = [{image.tobytes() for image in images} for images, _ in splits(path)]
    assert before[0] <= after[0]
    assert before[1] <= after[1]
    assert len(after[0] | after[1]) == 25


@pytest.mark.parametrize("test", ["test", "Val", "validation"])
def test_folders_of_splits(tmp_path, test):
    for split, images in (("Train", IMAGES), (test, TEST_IMAGES)):
        for i, image in enumerate(images):
            file = tmp_path / "own" / split / NAMES[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image))
    (train, labels), (held_out, _) = splits(tmp_path / "own")
    assert {image.tobytes() for image in train} == {image.tobytes() for image in IMAGES}
    assert {image.tobytes() for image in held_out} == {image.tobytes() for image in TEST_IMAGES}
    assert data.class_names(config(tmp_path / "own")) == NAMES
    for image, label in zip(train, labels, strict=True):
        assert (image == IMAGES[label::2]).all((1, 2, 3)).any()


def test_the_first_images_are_of_all_classes(tmp_path):
    path = image_folder(tmp_path)
    for labels in (labels for _, labels in splits(path, split=0.5)):
        assert set(labels[:6]) == {0, 1}
    train, test, *_ = data.load(config(path, train_examples=6, test_examples=5, split=0.5))
    assert (len(train), len(test)) == (6, 5)


def test_other_files_are_counted(tmp_path, caplog, prepared):
    path = image_folder(tmp_path)
    for name in (".hidden.png", "notes.txt", "more.txt", "README"):
        (path / name).write_bytes(b"x")
    splits(path)
    assert "left out: 2 .txt, 1 none, 1 hidden" in caplog.text
    (record,) = prepared.glob("*/source.json")
    kept = json.loads(record.read_text("utf-8"))
    assert kept["ignored"] == {".txt": 2, "none": 1, "hidden": 1}
    assert kept["data"] == str(path)
    assert sum(kept["arrays"][f"{split}_images"][1][0] for split in ("train", "test")) == 24
    caplog.clear()
    (path / "notes.txt").write_bytes(b"longer")  # what is ignored does not count
    splits(path)
    assert not caplog.records


SYSTEM = [
    *("@eaDir/a.png/SYNOPHOTO_THUMB_M.png", "SYNOPHOTO_THUMB_XL.png", "#recycle/a.png"),
    *("#snapshot/a.png", "$RECYCLE.BIN/a.png", "System Volume Information/a.png"),
    *("lost+found/a.png", "Thumbs/a.png", "Mine.photoslibrary/resources/a.png", ".git/a.png"),
    *("__MACOSX/cat/._1.png", "Thumbs.db", "@Recycle/a.png", "cat\\.git\\a.png"),
]


@pytest.mark.parametrize("below", ["", "cat"])
def test_files_of_systems_are_hidden(tmp_path, caplog, below):
    path = image_folder(tmp_path)
    for name in SYSTEM:
        (path / below / name).parent.mkdir(parents=True, exist_ok=True)
        (path / below / name).write_bytes(png(IMAGES[0]))
    check_whole(path)
    assert f"; left out: {len(SYSTEM)} hidden\n" in caplog.text


def test_links_that_lead_nowhere(tmp_path, caplog):
    path = image_folder(tmp_path)
    (path / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (path / "gone").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    (path / "loop.png").symlink_to(path / "loop.png")
    check_whole(path)
    assert "; left out: 3 links that lead nowhere\n" in caplog.text
    for file in path.rglob("*.PNG"):
        file.unlink()
    denied(path, "has no images, but 3 links that lead nowhere; it takes")


def test_a_folder_is_read_once(tmp_path, caplog):
    """Where it lies; one outside by the first link, and what lies in it by no other link."""
    path = image_folder(tmp_path)
    (path / "dög 犬").rename(tmp_path / "outside")
    links = {
        "a link": path / "cat",
        "cat/deep": tmp_path / "outside" / "any depth",
        "dög 犬": tmp_path / "outside",
        "z": tmp_path / "outside",
        "loop": path,
    }
    for name, target in links.items():
        (path / name).symlink_to(target, target_is_directory=True)
    train, test = splits(path, split=0.5)
    found = [image.tobytes() for image in (*train[0], *test[0])]
    assert sorted(found) == sorted(image.tobytes() for image in IMAGES)
    # The deep one comes after "a link" and before the others, and "dög 犬" finds its folder read.
    assert "; left out: 4 links to folders that are read\n" in caplog.text
    keys = {"/".join(file.parts[:-1]) for file in paths.walk(path).files}
    assert keys == {"cat/any depth", "cat/deep"}


# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def test_pointers_of_git_lfs(tmp_path, caplog):
    path = image_folder(tmp_path)
    for name in ("b.png", "a.png"):
        (path / "cat" / name).write_bytes(POINTER)
    denied(
        path,
        r"2 of 26 files in .*my photos are pointers of Git LFS, whose content is not here: "
        r"cat/a\.png, cat/b\.png; run git lfs pull there, or pass `skip_unreadable=True`",
    )
    with pytest.raises(UserError, match=r"a\.png is not a readable image \(it is a pointer of Git"):
        take_images(path / "cat" / "a.png", Conversion((8, 8), "crop", "auto", 3))
    (train, _), (test, _) = splits(path, skip_unreadable=True)
    assert len(train) + len(test) == 24
    assert "left out: 2 unreadable" in caplog.text
    for name in ("train.parquet", "a.npz", "a.npy", "train-images-idx3-ubyte"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(POINTER)
        where = tmp_path / name / name if name.startswith("a.") else tmp_path / name
        denied(where, "1 of 1 files in .*: .*; run git lfs pull there$", skip_unreadable=True)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ({"exclude": ("*_mask.png",)}, {"a/1.png", "a/masks/2.png", "a/b/3.jpg", "b/4.png"}),
        ({"exclude": ("masks", "b")}, {"a/1.png", "a/1_mask.png"}),
        ({"exclude": ("a/b/", "[ab]/[14].png")}, {"a/1_mask.png", "a/masks/2.png"}),
        ({"include": ("*.jpg", "4.png")}, {"a/b/3.jpg", "b/4.png"}),
        ({"include": ("a",), "exclude": ("b",)}, {"a/1.png", "a/1_mask.png", "a/masks/2.png"}),
    ],
)
def test_patterns_of_files(tmp_path, patterns, left):
    names = ["a/1.png", "a/1_mask.png", "a/masks/2.png", "a/b/3.jpg", "b/4.png", "b/notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listing = paths.walk(tmp_path, config("x", **patterns))
    found = {file.key for file in listing.files} - {"b/notes.txt"}
    assert found == left
    assert listing.left_out == {"excluded": 6 - len(listing.files)}


def test_a_choice_of_files_is_prepared_apart(tmp_path, prepared, caplog):
    path = image_folder(tmp_path)
    Image.new("L", (3, 3)).save(path / "cat" / "1_mask.png")
    check_patterns = partial(splits, path, exclude=["*_mask.png"])
    assert sum(len(images) for images, _ in check_patterns()) == 24
    assert "; left out: 1 excluded\n" in caplog.text
    (path / "cat" / "1_mask.png").unlink()
    check_whole(path)
    caplog.clear()
    check_patterns()
    assert not caplog.records
    assert len(list(prepared.glob("my_photos-*"))) == 2
    denied(path, r"has no images, but 24 excluded; it takes", include=("*.tif",))
    for other in (npz_file(tmp_path), "mnist"):
        denied(other, "`include` and `exclude` choose files of a folder, and", include=("*.png",))


def test_an_archive_from_windows_unpacked_elsewhere(tmp_path):
    path = tmp_path / "own"
    path.mkdir()
    for split, images, labels in (("train", IMAGES, LABELS), ("test", TEST_IMAGES, TEST_LABELS)):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            (path / f"photos\\{split}\\{NAMES[label]}\\{i}.png").write_bytes(png(image))
    (train, labels), (test, _) = splits(path)
    assert {x.tobytes() for x in train} == {x.tobytes() for x in IMAGES}
    assert {x.tobytes() for x in test} == {x.tobytes() for x in TEST_IMAGES}
    assert sorted(labels) == sorted(LABELS)
    assert data.class_names(config(path)) == NAMES


def test_mixed_sizes_are_refused_with_two_files(tmp_path):
    path = image_folder(tmp_path)
    Image.new("RGB", (10, 20)).save(path / "odd.jpg")
    denied(path, r"8 x 8 pixels and .*odd\.jpg 20 x 10|odd\.jpg has 20 x 10 .* 8 x 8;.*`image_size")
    denied(
        path,
        r"odd\.jpg has 20 x 10 pixels, and `image_size` is 8 x 8",
        image_size=(8,),
        resize="none",
    )
    for resize in ("fit", "crop", "stretch"):
        (train, _), (test, _) = splits(path, image_size=(6, 5), resize=resize)
        assert train.shape[1:] == test.shape[1:] == (6, 5, 3)
        assert len(train) + len(test) == 25


def test_the_command_line_says_it_in_flags(tmp_path, refuse):
    path = image_folder(tmp_path)
    Image.new("RGB", (10, 20)).save(path / "odd.jpg")
    result = refuse("train", "--data", path)
    *log, line = result.stderr.splitlines()
    assert result.returncode == 2
    assert "bring all to one size with --image-size 64, for example" in line
    assert [each.split()[0] for each in log] == ["Preparing"]
    (path / "odd.jpg").write_bytes(b"")
    line = refuse("train", "--data", path, "--image-size", 8).stderr.splitlines()[-1]
    assert line.endswith("save it again, remove it, or pass --skip-unreadable")


def test_images_that_are_too_small(tmp_path):
    path = tmp_path / "own"
    path.mkdir()
    for i in range(9):
        Image.new("L", (9, 3), i * 20).save(path / f"{i}.png")
    denied(path, r"\d\.png has 3 x 9 pixels; images take at least 4 x 4 .*`image_size=64`")
    assert splits(path, image_size=(4,), split=0.5)[0][0].shape[1:] == (4, 4, 1)
    np.save(tmp_path / "a.npy", IMAGES[:, :3, :3])
    denied(tmp_path / "a.npy", r"a\.npy\[\d+\] has 3 x 3 pixels; images take at least 4 x 4")
    assert splits(tmp_path / "a.npy", image_size=4)[0][0].shape[1:] == (4, 4, 3)


def test_channels(tmp_path):
    path = tmp_path / "own"
    path.mkdir()
    for i in range(12):
        Image.new("L", (4, 4), 100 + i).save(path / f"{i}.png")
    assert splits(path, split=0.5)[0][0].shape[1:] == (4, 4, 1)
    assert splits(path, split=0.5, channels=3)[0][0].shape[1:] == (4, 4, 3)
    Image.new("RGBA", (4, 4), (90, 90, 90, 128)).save(path / "color.png")
    assert splits(path, split=0.5)[0][0].shape[1:] == (4, 4, 3)
    assert splits(path, split=0.5, channels=1)[0][0].shape[1:] == (4, 4, 1)
    images = np.concatenate([images for images, _ in splits(path, split=0.5, channels=4)])
    assert images.shape[1:] == (4, 4, 4)
    assert sorted(set(images[..., 3].flat)) == [128, 255]


def test_unreadable_files(tmp_path, caplog, prepared):
    path = image_folder(tmp_path)
    whole = png(IMAGES[0])
    (path / "cat" / "cut.png").write_bytes(whole[:-100])
    denied(path, r"cut\.png is not a readable image .*`skip_unreadable=True`")
    (path / "cat" / "text.jpg").write_bytes(b"text")
    (path / "cat" / "empty.gif").write_bytes(b"")
    for suffix in ("gif", "png"):  # with palettes, which are decoded to see whether they are gray
        file = io.BytesIO()
        Image.fromarray(IMAGES[1]).quantize().save(file, suffix)
        (path / "cat" / f"palette.{suffix}").write_bytes(file.getvalue()[:-60])
    (train, _), (test, _) = splits(path, skip_unreadable=True)
    assert len(train) + len(test) == 24
    assert "left out: 5 unreadable" in caplog.text
    (record,) = prepared.glob("*/source.json")
    kept = json.loads(record.read_text("utf-8"))
    assert kept["skipped"] == 5
    assert sorted(Path(name).name for name in kept["skipped_files"]) == [
        *("cut.png", "empty.gif", "palette.gif", "palette.png", "text.jpg")
    ]
    for file in path.rglob("*.PNG"):
        file.write_bytes(b"")
    denied(path, "gives no training images, 29 unreadable ones left out", skip_unreadable=True)


def test_no_test_images(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES[:2])
    denied(
        tmp_path / "a.npy",
        r"a\.npy gives no test images; give more images, or divide .*`split=0\.5`",
    )


def test_white_that_is_1(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES // 128)
    denied(tmp_path / "a.npy", r"a\.npy has no pixel above 1 of 255; .*pass `white=1`")
    assert set(splits(tmp_path / "a.npy", white=1)[0][0].flat) == {0, 255}
    np.save(tmp_path / "a.npy", IMAGES >= 128)
    assert set(splits(tmp_path / "a.npy")[0][0].flat) == {0, 255}


# Arrays.


@pytest.mark.parametrize(
    ("arrays", "with_labels"),
    [
        ({"arr_0": IMAGES}, False),
        ({"images": IMAGES, "labels": LABELS}, True),
        ({"images": IMAGES, "labels": LABELS, "ids": np.arange(24) + 100}, True),
        ({"images": IMAGES, "ids": np.arange(24), "years": np.arange(24)}, False),
        ({"images": IMAGES, "labels": np.ones((24, 14), int)}, False),  # several for each image
    ],
)
def test_one_array_is_split(tmp_path, arrays, with_labels):
    np.savez(tmp_path / "a.npz", **arrays)
    check_whole(tmp_path / "a.npz", with_labels=with_labels)


def test_the_order_of_axes_in_a_file_does_not_matter(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(IMAGES))
    check_whole(tmp_path / "a.npy", with_labels=False)
    np.save(tmp_path / "b.npy", IMAGES[..., 0])
    (train, _), _ = splits(tmp_path / "b.npy", image_size=4, channels=3)
    assert train.shape[1:] == (4, 4, 3)


def test_medmnist(tmp_path, caplog):
    # As its script writes: labels [N, 1].
    np.savez_compressed(
        tmp_path / "pathmnist.npz",
        train_images=IMAGES,
        val_images=IMAGES[:5],
        test_images=TEST_IMAGES,
        train_labels=LABELS[:, None].astype(np.uint8),
        val_labels=LABELS[:5, None].astype(np.uint8),
        test_labels=TEST_LABELS[:, None].astype(np.uint8),
    )
    path = tmp_path / "pathmnist.npz"
    check_own_splits(path)
    assert "Prepared 24 training, 5 validation and 6 test images of 8 x 8 x 3, " in caplog.text
    assert data.class_names(config(path)) == ("0", "1")
    images, labels = data.load_split(config(path), "validation")
    np.testing.assert_array_equal(images, IMAGES[:5])
    np.testing.assert_array_equal(labels, LABELS[:5])


@pytest.mark.parametrize(
    "names",
    [
        ("train", "train_labels", "test", "test_labels"),
        ("X_train", "Y_train", "X_val", "Y_val"),
        ("train/x", "train/y", "test/x", "test/y"),
        ("xtrain", "ytrain", "xtest", "ytest"),
    ],
)
def test_names_in_an_npz(tmp_path, names):
    values = (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS)
    np.savez(tmp_path / "a.npz", **dict(zip(names, values, strict=True)))
    check_own_splits(tmp_path / "a.npz")


class Tripwire:
    """Fails the test that unpickles it."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(tmp_path):
    values = np.empty(3, object)
    values[:] = [Tripwire()] * 3
    np.savez(tmp_path / "a.npz", images=values)
    np.save(tmp_path / "a.npy", values)
    for name in ("a.npz", "a.npy"):
        denied(tmp_path / name, rf"{name} is not a readable .*Python objects")
    np.savez(tmp_path / "a.npz", images=IMAGES, meta=values)
    check_whole(tmp_path / "a.npz", with_labels=False)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"a": IMAGES, "b": IMAGES}, r"several arrays of images, a \[24, 8, 8, 3\] and b"),
        ({"images": np.moveaxis(IMAGES, -1, 1)}, r"images has shape \[24, 3, 8, 8\].*channels fir"),
        ({"images": IMAGES.reshape(24, -1)}, r"images has shape \[24, 192\].*reshape flattened"),
        ({"labels": LABELS}, "has no array of images"),
        ({"train": IMAGES, "test": TEST_IMAGES[:, :4]}, r"8 x 8 pixels and .*test\[0\] 4 x 8"),
        ({"x": IMAGES, "y": LABELS[:5]}, "x has 24 images and 5 labels"),
        ({"val": IMAGES, "test": IMAGES}, "images of test and validation; it takes train with"),
        ({"x": IMAGES.astype(int)}, r"x\[\d+\] is of type int64"),
        ({"x": IMAGES.astype(np.float32)}, r"x\[\d+\] has floats in \[\d+, 25\d\]"),
    ],
)
def test_arrays_that_are_refused(tmp_path, images, message):
    np.savez(tmp_path / "a.npz", **images)
    denied(tmp_path / "a.npz", rf"a\.npz.*{message}")


def test_damaged_arrays(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", IMAGES)
    np.save(tmp_path / "a.npy", IMAGES)
    for name in ("a.npz", "a.npy"):
        whole = (tmp_path / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 0xFF
        damages = [whole[:-500], b"", b"\x93NUMPY text"] + ([flipped] if name == "a.npz" else [])
        for damage in damages:
            (tmp_path / name).write_bytes(damage)
            denied(tmp_path / name, rf"{name} is not a readable {name[2:]} file .*save it again")


WHOLE = {name: io.BytesIO() for name in ("a.npy", "a.npz")}
np.save(WHOLE["a.npy"], IMAGES[:2, :4, :4])
np.savez(WHOLE["a.npz"], train=IMAGES[:2, :4, :4], labels=LABELS[:2])


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), name=st.sampled_from(sorted(WHOLE)))
def test_any_damage_is_a_line_for_the_user(tmp_path, data, name):
    content = bytearray(WHOLE[name].getvalue())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    (tmp_path / name).write_bytes(content)
    refused = ""
    try:
        for items in arrays.open_file(tmp_path / name).items.values():
            for item in items():
                eight_bit_array(item.read(), item.name)
    except UserError as caught:
        refused = str(caught)
    assert "\n" not in refused


def test_validation_chooses_and_test_images_are_evaluated(tmp_path, capsys):
    # Black images to validate on, and white ones to test.
    arrays = {
        "train": IMAGES,
        "val": IMAGES[:5] // 255,
        "test": np.full((3, 8, 8, 3), 255, np.uint8),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    images = data.load(config(tmp_path / "a.npz"))
    np.testing.assert_array_equal(images.validation, arrays["val"])
    expected = hashlib.sha256(b"".join(arrays[x].tobytes() for x in ("train", "test", "val")))
    assert images.digest == expected.hexdigest()
    some = data.load(config(tmp_path / "a.npz", test_examples=2))
    expected = hashlib.sha256(
        b"".join(x.tobytes() for x in (IMAGES, arrays["test"], arrays["val"][:2]))
    )
    assert (len(some.validation), some.digest) == (2, expected.hexdigest())
    training = config(tmp_path / "a.npz", epochs=1, model="simple", optimizer="adam")
    result = cae_jax.fit(training, tmp_path / "run")

    def psnr(originals):
        errors = result.autoencoder.reconstruct(originals).astype(np.float64) - originals / 255
        return np.mean(-10 * np.log10((errors**2).mean((1, 2, 3))))

    np.testing.assert_allclose(result.history[0].val_psnr, psnr(arrays["val"]), rtol=1e-5)
    cli.main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "e.json")])
    _, row = json.loads((tmp_path / "e.json").read_text())["rows"]
    np.testing.assert_allclose(row["psnr"][0], psnr(arrays["test"]), rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_began_without_validation_images(tmp_path):
    """As with earlier versions, which left them out: what the line advises resumes it."""
    path = tmp_path / "sets"
    for split, images in (("train", IMAGES), ("test", TEST_IMAGES), ("val", TEST_IMAGES)):
        (path / split).mkdir(parents=True)
        for i, image in enumerate(images):
            (path / split / f"{i}.png").write_bytes(png(image))
    training = config(path, epochs=1, model="simple", optimizer="adam")
    (path / "val").rename(tmp_path / "val")
    cae_jax.fit(training, tmp_path / "run")
    (tmp_path / "val").rename(path / "val")
    shutil.rmtree(tmp_path / "prepared")
    more = dataclasses.replace(training, epochs=2)
    with pytest.raises(UserError, match=r"restore them \(without validation images, if"):
        cae_jax.fit(more, tmp_path / "run")
    (path / "val").rename(tmp_path / "val")
    assert len(cae_jax.fit(more, tmp_path / "run").history) == 2


def test_two_splits_without_training_images(tmp_path):
    np.savez(tmp_path / "a.npz", val=IMAGES, test=TEST_IMAGES)
    denied(tmp_path / "a.npz", "images of test and validation; it takes train with")


# IDX files.


def test_idx_files(tmp_path, prepared):
    path = idx_folder(tmp_path)
    check_own_splits(path, channels=1)
    (record,) = prepared.glob("*/source.json")
    sums = json.loads(record.read_text("utf-8"))["source_sha256"]
    assert sums == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()
    }


def test_emnist_and_qmnist_names(tmp_path):
    path = idx_folder(tmp_path)
    qmnist = tmp_path / "qmnist"
    qmnist.mkdir()
    for file in list(path.iterdir()):
        name = file.name.replace("t10k", "test")
        for other in (path / f"emnist-letters-{name}", path / f"emnist-digits-{name}"):
            shutil.copy(file, other)
        file.rename(qmnist / f"qmnist-{name}")
    denied(path, "several data sets.*::emnist-digits, ::emnist-letters")
    for chosen in (f"{path}::emnist-letters", f"{path}::digits", qmnist):
        (train, _), (_, labels) = splits(chosen)
        np.testing.assert_array_equal(train, IMAGES[..., :1])
        np.testing.assert_array_equal(labels, TEST_LABELS)
    # QMNIST's labels are tables of eight int32, the class first.
    for file in qmnist.glob("*labels*"):
        values = LABELS if "train" in file.name else TEST_LABELS
        rows = np.stack([values, *[values + 7] * 7], 1).astype(">i4")
        head = struct.pack(">3I", 0x0C02, *rows.shape)
        file.with_name(file.name.replace("idx1-ubyte", "idx2-int")).write_bytes(
            head + rows.tobytes()
        )
        file.unlink()
    np.testing.assert_array_equal(splits(qmnist)[0][1], LABELS)


def test_idx_files_without_labels_or_test_images(tmp_path):
    path = idx_folder(tmp_path)
    (path / "t10k-labels-idx1-ubyte").unlink()
    assert splits(path)[1][1] is None
    (path / "t10k-images-idx3-ubyte.gz").unlink()
    (train, labels), (test, _) = splits(path)
    assert len(train) + len(test) == 24
    assert len(labels) == len(train)


def test_damaged_idx_files(tmp_path):
    path = idx_folder(tmp_path)
    file = path / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(file.read_bytes())
    for content, message in (
        (whole[:-1], "is truncated: 1535 of the 1536 bytes"),
        (whole + b"x", "has bytes after"),
        (b"\x00\x00\x0d\x03" + whole[4:], "magic number"),
        (struct.pack(">4I", 0x0803, 2**31, 8, 8), "announces \\[2147483648, 8, 8\\]"),
        (struct.pack(">4I", 0x0803, 9, 2**16, 2**16), "announces"),
    ):
        file.write_bytes(gzip.compress(content))
        denied(path, rf"train-images-idx3-ubyte\.gz.*{message}")


# Data sets that TFDS has prepared.


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_a_tfds_folder(tmp_path, file_format):
    path = tfds_folder(tmp_path / "theirs", file_format)
    check_own_splits(path)
    assert data.class_names(config(path)) == ("cat", "dog")
    check_own_splits(path.parent)  # the folder of the versions, where there is one
    (train, _), (test, labels) = splits(f"{path}::train[:50%],train[75%:]")
    np.testing.assert_array_equal(train, IMAGES[:12])
    np.testing.assert_array_equal(test, IMAGES[18:])
    np.testing.assert_array_equal(labels, LABELS[18:])
    (train, _), (test, _) = splits(f"{path}::train[:18]")
    np.testing.assert_array_equal(train, IMAGES[:18])
    np.testing.assert_array_equal(test, TEST_IMAGES)
    (train, _), (test, _) = splits(f"{path}::train+test,test")
    np.testing.assert_array_equal(train, np.concatenate([IMAGES, TEST_IMAGES]))
    (train, _), (test, _) = splits(f"{path}::train[:9],train[9:12],test")
    np.testing.assert_array_equal(test, IMAGES[9:12])
    both = f"{path}::train[:9],train[9:12],test"
    np.testing.assert_array_equal(data.load_split(config(both), "validation")[0], TEST_IMAGES)
    denied(f"{path}::train,test,test,test", "names no part of the data set")
    (path.parent / "2.1.0").mkdir()
    for mark in ("dataset_info.json", "features.json"):
        shutil.copy(path / mark, path.parent / "2.1.0" / mark)
    denied(path.parent, r"has 2 data sets of TFDS, in 2\.0\.0, 2\.1\.0; give the folder of one")
    denied(f"{path}::training[:9]", r"names no part .*train \(24\), test \(6\): write ::train\[")
    assert "tensorflow" not in sys.modules


def test_parts_that_overlap_or_are_empty(tmp_path, caplog):
    path = tfds_folder(tmp_path / "theirs", "array_record")
    splits(f"{path}::train[:50%],train[50%:]")
    assert "trains on test images" not in caplog.text
    for part in ("train+test", "train[:60%],train[50%:]"):
        caplog.clear()
        splits(f"{path}::{part}")
        assert f"{path}::{part} trains on test images, of t" in caplog.text
    for part in ("train[:0]", "train[5:3]", "train,test[6:]"):
        denied(f"{path}::{part}", "holds no images; give a larger part")


def test_a_damaged_tfds_folder(tmp_path):
    path = tfds_folder(tmp_path / "theirs")
    (records,) = path.glob("*-test.*")
    records.rename(path / "elsewhere")
    denied(path, rf"{path}: test\[0\] is not a readable image .*No such file")
    (path / "elsewhere").rename(records)
    info = json.loads((path / "dataset_info.json").read_text())
    (path / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    denied(path, "holds tfrecord files, which only TensorFlow reads; .*array_record or parquet")
    (path / "features.json").write_text("{")
    denied(path, "is not an intact TFDS data set")


# Parquet files.


def test_parquet_without_metadata_or_test_images(tmp_path):
    (tmp_path / "hub" / "train").mkdir(parents=True)
    plain = table(IMAGES, LABELS).replace_schema_metadata(None)
    parquet.write_table(plain, tmp_path / "hub" / "train" / "0000.parquet")
    check_whole(tmp_path / "hub")
    assert data.class_names(config(tmp_path / "hub")) == ("0", "1")
    parquet.write_table(plain.select(["img"]), tmp_path / "a.parquet")
    check_whole(tmp_path / "a.parquet", with_labels=False)


def test_words_in_names_of_parquet_files(tmp_path):
    path = tmp_path / "hub"
    path.mkdir()
    for name, of in (("my_train_file", IMAGES), ("myTestFile2", TEST_IMAGES), ("dev", IMAGES[:3])):
        parquet.write_table(table(of, LABELS[: len(of)]), path / f"{name}.parquet")
    for split, expected in (("train", IMAGES), ("test", TEST_IMAGES), ("validation", IMAGES[:3])):
        np.testing.assert_array_equal(data.load_split(config(path), split)[0], expected)


def test_parquet_files_that_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "hub"
    path.mkdir()
    file = path / "train.parquet"
    parquet.write_table(pa.table({"text": ["a"], "label": [1]}), file)
    denied(path, r"train\.parquet has the columns text, label; it takes one of encoded images")
    file.write_bytes(b"PAR1 text")
    denied(path, r"train\.parquet is not an intact parquet file")
    whole = table(IMAGES, LABELS)
    column = whole["img"].to_pylist()
    column[3] = {"bytes": b"text", "path": None}
    parquet.write_table(whole.set_column(0, "img", pa.array(column, whole["img"].type)), file)
    denied(path, r"train\.parquet\[3\] is not a readable image")
    (train, _), (test, _) = splits(path, skip_unreadable=True)
    assert len(train) + len(test) == 23
    # A text is no image, not even if it is the path of one.
    (path / "b.png").write_bytes(png(IMAGES[0]))
    texts = [{"bytes": str(path / "b.png")} for _ in range(9)]
    parquet.write_table(pa.table({"image": pa.array(texts)}), file)
    (path / "b.png").rename(tmp_path / "b.png")
    denied(path, r"train\.parquet\[0\] is not a readable image \(the row has no bytes\)")
    parquet.write_table(pa.table({"other": [1]}), path / "train_2.parquet")
    parquet.write_table(whole, file)
    denied(path, r"train_2\.parquet has the columns other; it takes img and label once")
    (path / "train_2.parquet").unlink()
    (path / "a.png").write_bytes(png(IMAGES[0]))
    denied(path, "has 1 parquet files and 1 images; give a folder of one kind")
    (path / "a.png").unlink()
    both = whole.rename_columns(["noisy", "label"]).append_column("clean", whole["img"])
    parquet.write_table(both.replace_schema_metadata(None), file)
    denied(path, r"several columns of images, noisy, clean; .*`pairs=\('noisy', 'clean'\)`")
    named = both.rename_columns(["mask", "label", "image"]).replace_schema_metadata(None)
    parquet.write_table(named, file)
    assert len(splits(path)[0][0]) + len(splits(path)[1][0]) == 24
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    file.touch()
    denied(path, r'take pyarrow; pip install .*\[parquet\]"$')


# Names and paths.


def test_paths_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path)
    for path, message in (
        ("fashion_mnits", "`data` is 'fashion_mnits', where nothing is; .*mean fashion_mnist"),
        ("my photo", r"a folder of images, of IDX files, .* \.npy file; did you mean .*my photos"),
        ("my photos/cat/any depth/x.png", "where nothing is"),
    ):
        with pytest.raises(UserError, match=message):
            data.located(config(path))
        denied(path, message)
    (tmp_path / "a.txt").write_text("x")
    denied("a.txt", r"`data` is .*a\.txt, which is not a folder; it takes a folder of images")
    denied("/dev/null", "`data` is /dev/null, which is not a folder; it takes")
    image = next((tmp_path / "my photos" / "cat").rglob("*.PNG"))
    denied(image, f"`data` is the image {image}; give its folder, {image.parent}")
    for name in ("a\0b", "a" * 300):
        denied(name, "where nothing is")
    (tmp_path / "self.npy").symlink_to(tmp_path / "self.npy")
    with pytest.raises(UserError) as caught:
        splits("self.npy")
    assert "did you mean" not in str(caught.value)
    assert data.located(config("my photos/../my photos")).data == str(tmp_path / "my photos")
    (tmp_path / "empty").mkdir()
    denied("empty", "empty has no images; it takes a folder of images")
    (tmp_path / "empty" / "a.zip").write_bytes(b"x")
    denied("empty", r"empty has no images, but 1 \.zip; it takes")
    denied("my photos::train", "names the part train of .*my photos, which takes none")


def test_located_paths_are_absolute(tmp_path, monkeypatch):
    image_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.located(config("my photos")).data == str(tmp_path / "my photos")
    assert data.located(config("~/my photos::a")).data == f"{tmp_path / 'my photos'}::a"
    for name in ("fashion_mnist", "arrays"):
        assert data.located(config(name)).data == name


def test_images_of_another_shape_than_the_run(tmp_path):
    trained = dataclasses.replace(config(npy_file(tmp_path)), image_shape=(8, 8, 1))
    with pytest.raises(UserError, match=r"images of shape \[8, 8, 3\].*`image_shape` is \[8, 8, 1"):
        data.load_split(trained, "train")


def test_a_source_that_is_gone_is_read_from_its_copy(tmp_path, caplog):
    path = image_folder(tmp_path)
    expected = splits(path)
    shutil.rmtree(path)
    caplog.clear()
    for (images, labels), (before, labels_before) in zip(splits(path), expected, strict=True):
        np.testing.assert_array_equal(images, before)
        np.testing.assert_array_equal(labels, labels_before)
    assert data.class_names(config(path)) == NAMES
    assert f"{path} is gone; reading its prepared copy in" in caplog.text
    assert data.located(config(path)).data == str(path)
    denied(path, "where nothing is", image_size=(4,))


def test_earlier_states_of_a_folder_stay_prepared(tmp_path, prepared, caplog):
    path = image_folder(tmp_path)
    splits(path)
    (before,) = prepared.glob("my_photos-*")
    assert "Earlier states" not in caplog.text
    extra = path / "cat" / "extra.png"
    extra.write_bytes(png(IMAGES[0]))
    splits(path)
    assert f"Earlier states are in {before}, which may be removed" in caplog.text
    extra.unlink()
    caplog.clear()
    splits(path)
    assert "Prepared" not in caplog.text


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["train_images.npy", "test_labels.npy", "source.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-3]),
        lambda file: file.write_bytes(file.read_bytes() + b"x"),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
        lambda file: file.write_bytes(WHOLE["a.npy"].getvalue()),
    ],
    ids=["cut", "longer", "empty", "missing", "another"],
)
def test_a_damaged_copy_is_prepared_again(tmp_path, prepared, caplog, name, damage):
    path = npz_file(tmp_path)
    splits(path)
    (folder,) = prepared.glob("*/")
    whole = (folder / name).read_bytes()
    damage(folder / name)
    caplog.clear()
    check_own_splits(path)
    assert (folder / name).read_bytes() == whole
    assert f"Preparing {path} in {folder} again, because it is damaged: " in caplog.text
    assert sorted(each.name for each in prepared.iterdir()) == [".lock", folder.name]


def test_a_flipped_bit_is_found_where_all_bytes_are_compared(tmp_path, prepared, caplog):
    path = npz_file(tmp_path)
    expected = np.array(data.load(config(path)).train)  # not the file that changes
    (folder,) = prepared.glob("*/")
    for name in ("train_images", "test_images", "train_labels"):
        flip(folder / f"{name}.npy")
        caplog.clear()
        data.load(config(path))
        assert not caplog.records
        images = data.load(config(path), verify_data=True).train
        kind = name.split("_")[1]
        assert f"because it is damaged: the SHA-256 of the {kind} is " in caplog.text
        np.testing.assert_array_equal(images, expected)
    flip(folder / "train_images.npy")
    path.unlink()
    with pytest.raises(UserError, match=rf"{folder} is damaged .* is gone; restore that"):
        data.load(config(path), verify_data=True)


def test_the_digest_is_that_of_the_images_which_are_used(tmp_path, monkeypatch):
    path = npz_file(tmp_path)
    everything = hashlib.sha256(IMAGES.tobytes() + TEST_IMAGES.tobytes()).hexdigest()
    assert data.load(config(path)).digest == everything
    some = hashlib.sha256(IMAGES[:5].tobytes() + TEST_IMAGES.tobytes()).hexdigest()
    assert data.load(config(path, train_examples=5, test_examples=9)).digest == some
    images = (IMAGES, TEST_IMAGES)
    assert data.of_arrays(TrainConfig(data="arrays", batch_size=4), images).digest == everything
    monkeypatch.setattr(data.prepared, "digest", None)  # a later start reads no images
    for fields, expected in (({}, everything), ({"train_examples": 5, "test_examples": 9}, some)):
        assert data.load(config(path, **fields)).digest == expected


def test_gray_images_before_a_colored_one_become_rgb(tmp_path):
    path = tmp_path / "own"
    path.mkdir()
    names = sources.mixed(f"{i}.png" for i in range(12))
    for name in names[:-1]:
        Image.new("L", (4, 4), 100).save(path / name)
    Image.new("RGB", (4, 4), (9, 90, 200)).save(path / names[-1])
    (train, _), (test, _) = splits(path, split=0.5)
    images = np.concatenate([train, test])
    assert images.shape == (12, 4, 4, 3)
    assert sorted(map(tuple, images[:, 0, 0].tolist())) == [(9, 90, 200), *[(100, 100, 100)] * 11]


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch, caplog):
    path = image_folder(tmp_path)
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("cat"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    denied(path, "my photos cannot be read .*cat.*grant read permission, or pass `skip_unreadable")
    caplog.clear()
    (train, _), (test, _) = splits(path, skip_unreadable=True)
    assert len(train) + len(test) == (LABELS == 1).sum()
    assert "; left out: 1 without permission\n" in caplog.text
    denied(path / "cat", "cat.*grant read permission$", skip_unreadable=True)


def test_the_split_takes_both_forms_of_a_name():
    for i in range(50):
        name = f"dö{i}.png"
        forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
        assert len({sources.split_of(form, 0.5) for form in forms}) == 1
    shares = [sources.split_of(f"{i}", 0.9) == "train" for i in range(2000)]
    assert 1740 < sum(shares) < 1860  # 1800, give or take 4.5 standard deviations


def test_a_folder_is_walked_and_an_image_opened_once(tmp_path, monkeypatch):
    path, calls = image_folder(tmp_path), []
    for module, name in ((paths, "walk"), (folder, "open_image")):
        original = getattr(module, name)

        def counted(*arguments, name=name, original=original):
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(module, name, counted)
    data.load(data.located(config(path)))
    assert calls == ["walk", *["open_image"] * 24]


def test_names_of_prepared_data_are_safe(tmp_path, prepared):
    np.save(tmp_path / "Ein Bild: ünï 犬.npy", IMAGES)
    splits(tmp_path / "Ein Bild: ünï 犬.npy")
    (folder,) = prepared.glob("*/")
    assert folder.name.startswith("ein_bild_n_npy-")
    assert len(folder.name) < 60


# --- What lies beside images ---


def test_the_figures_of_runs_are_no_images(tmp_path):
    photos = image_folder(tmp_path)
    before = splits(photos)
    (photos / "run").mkdir()
    (photos / "run" / RUN_MARK).touch()
    Image.new("RGB", (40, 30)).save(photos / "run" / "history.png")
    for (images, _), (expected, _) in zip(splits(photos), before, strict=True):
        np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("writer", [idx_folder, tfds_folder])
def test_two_kinds_of_images_in_a_folder_are_refused(tmp_path, writer):
    photos = image_folder(tmp_path)
    shutil.copytree(writer(tmp_path / "other"), photos / "other")
    denied(photos, r"my photos has .* and 24 images; give a folder of one kind")


def test_a_label_that_counts_something_else_makes_no_classes(tmp_path):
    folder = idx_folder(tmp_path)
    table = np.zeros((24, 2), ">i4")
    table[3, 0] = 20_000_000
    (folder / "train-labels-idx1-ubyte").unlink()
    content = struct.pack(">3I", 0x0C02, *table.shape) + bytes(table)
    (folder / "train-labels-idx2-int").write_bytes(content)
    (_, train_labels), _ = splits(folder)
    assert train_labels is None
    assert data.class_names(config(folder)) == ()


def test_a_label_without_a_class_is_named(tmp_path):
    table = pa.table({"image": [{"bytes": png(image)} for image in IMAGES], "label": [5] * 24})
    names = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set" / "train.parquet")
    denied(tmp_path / "set", r"train\.parquet\[\d+\] has the label 5, and there are 2 classes")


def test_a_path_object_is_a_path(tmp_path):
    assert TrainConfig(data=tmp_path).data == str(tmp_path)


def test_arrays_keep_their_transparency_only_if_asked_to(tmp_path):
    rgba = np.concatenate([IMAGES, np.full((24, 8, 8, 1), 255, np.uint8)], axis=3)
    np.save(tmp_path / "rgba.npy", rgba)
    (train, _), _ = splits(tmp_path / "rgba.npy")
    assert train.shape[1:] == (8, 8, 3)
    (train, _), _ = splits(tmp_path / "rgba.npy", channels=4)
    assert train.shape[1:] == (8, 8, 4)


def test_arrays_that_are_not_used_are_not_read(tmp_path):
    """Of a small file that unpacks to gigabytes only headers are read."""
    np.savez_compressed(tmp_path / "all.npz", images=IMAGES, table=np.zeros((10, 10)))
    with (
        zipfile.ZipFile(tmp_path / "all.npz", "a") as archive,
        archive.open("big.npy", "w") as file,
    ):
        shape = {"descr": "<f8", "fortran_order": False, "shape": (10**10,)}
        np.lib.format.write_array_header_1_0(file, shape)
    check_whole(tmp_path / "all.npz", with_labels=False)
