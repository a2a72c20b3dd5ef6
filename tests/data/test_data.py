"""Preparation, cache and errors of the data sets."""

import gzip
import hashlib
import multiprocessing
import shutil
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import requests
from PIL import Image
from tensorflow_datasets.core import constants

from cae_jax import TrainConfig, UserError, data
from cae_jax.config import NAMED
from cae_jax.data.sources import named
from cae_jax.data.sources.named import ARCHIVES, CaeImages
from tests import conftest
from tests.helpers import in_process

FASHION, MNIST = TrainConfig(), TrainConfig(data="mnist")


def test_arrays_are_those_of_the_archives_in_their_order(data_dir):
    everything = data.load(FASHION, data_dir=data_dir)
    some = data.load(TrainConfig(train_examples=200, test_examples=30), data_dir=data_dir)
    for i, (name, count) in enumerate((("train", 60000), ("t10k", 10000))):
        split, first = data.SPLITS[i], (200, 30)[i]
        raw, raw_labels = (
            gzip.decompress((conftest.ARCHIVES / f"{name}-{kind}-ubyte.gz").read_bytes())
            for kind in ("images-idx3", "labels-idx1")
        )
        images, labels = data.load_split(FASHION, split, data_dir=data_dir)
        assert (images.dtype, images.shape) == (np.uint8, (count, 28, 28, 1))
        assert images.tobytes() == everything[i].tobytes() == raw[16:]
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, np.frombuffer(raw_labels[8:], np.uint8))
        assert some[i].tobytes() == raw[16 : 16 + first * 784]
    assert some.digest == everything.digest == ""  # the config says which images they are


def test_a_batch_larger_than_the_data_set_is_refused(tiny_mnist, tmp_path):
    config = TrainConfig(data="mnist", batch_size=31)
    with pytest.raises(
        UserError,
        match="`batch_size` is 31, and there are 30 training images of mnist; pass `batch_size=30`",
    ):
        data.load(config, data_dir=tmp_path)


def prepared_folders(root):
    """The folders of prepared images; TFDS's records are in others."""
    return [path.parent for path in (root / "cae_images").glob("*/source.json")]


def test_preparing_is_announced_once_on_stderr(tiny_mnist, tmp_path, capsys):
    for _ in range(2):
        data.load_split(MNIST, "test", data_dir=tmp_path)
    output = capsys.readouterr()
    preparing, prepared = output.err.splitlines()
    (folder,) = prepared_folders(tmp_path)
    assert preparing == f"Preparing mnist in {folder} (once)"
    assert prepared.startswith("Prepared 30 training and 20 test images of 28 x 28 x 1, values 0")
    assert output.out == ""


def test_the_builder_and_the_config_know_the_same_data_sets(data_dir):
    names = [source.name for source in CaeImages.BUILDER_CONFIGS]
    assert names == list(NAMED)
    assert tuple(ARCHIVES) == data.SPLITS[:2]
    # https://github.com/zalandoresearch/fashion-mnist#labels
    assert data.class_names(FASHION, data_dir=data_dir)[8:] == ("Bag", "Ankle boot")


def test_data_is_imported_without_tfds():
    code = "import sys, cae_jax.data.images; assert 'tensorflow_datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_second_start_reads_the_cache_alone(data_dir, monkeypatch):
    images, _ = data.load_split(FASHION, "train", data_dir=data_dir)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    started = time.perf_counter()
    again, _ = data.load_split(FASHION, "train", data_dir=data_dir)
    # 0.05 s on two cores with nothing else running; the bound is for machines that are busy.
    assert time.perf_counter() - started < 2
    np.testing.assert_array_equal(again, images)


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder of four small IDX files as if MNIST shipped with the package."""
    folder = tmp_path / "archives"
    folder.mkdir()
    rng = np.random.default_rng(0)
    infos = CaeImages.url_infos
    assert infos is not None
    infos = dict(infos)
    for (images, labels), count in zip(ARCHIVES.values(), (30, 20), strict=True):
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
        digits = rng.integers(0, 10, count, np.uint8)
        header = struct.pack(">4I", 0x0803, count, 28, 28)
        (folder / images).write_bytes(gzip.compress(header + pixels.tobytes()))
        header = struct.pack(">2I", 0x0801, count)
        (folder / labels).write_bytes(gzip.compress(header + digits.tobytes()))
        for name in (images, labels):
            url = f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}"
            packed = (folder / name).read_bytes()
            for key, content in ((url, packed), (url[:-3], gzip.decompress(packed))):
                digest = hashlib.sha256(content).hexdigest()
                infos[key] = type(infos[url])(len(content), digest, name)
    monkeypatch.setattr(CaeImages, "url_infos", infos)
    monkeypatch.setitem(named.SHIPPED, "mnist", folder)
    return folder


def test_the_images_and_labels_of_idx_files(tiny_mnist, tmp_path):
    images, labels = data.load_split(MNIST, "train", data_dir=tmp_path)
    raw = gzip.decompress((tiny_mnist / ARCHIVES["train"][0]).read_bytes())
    assert images.tobytes() == raw[16:]
    assert labels.shape == (30,)
    assert len(data.load_split(MNIST, "test", data_dir=tmp_path)[0]) == 20
    # As a user's own folder they are the same images.
    own = TrainConfig(data=tiny_mnist, batch_size=4)
    np.testing.assert_array_equal(data.load_split(own, "train", data_dir=tmp_path)[0], images)


def test_a_named_data_set_is_converted(tiny_mnist, tmp_path):
    config = TrainConfig(data="mnist", image_size=(14,), channels=3)
    images, labels = data.load_split(config, "test", data_dir=tmp_path)
    raw, digits = (gzip.decompress((tiny_mnist / name).read_bytes()) for name in ARCHIVES["test"])
    for image, pixels in zip(
        images, np.frombuffer(raw[16:], np.uint8).reshape(-1, 28, 28), strict=True
    ):
        expected = np.asarray(Image.fromarray(pixels).resize((14, 14), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(image, np.stack([expected] * 3, -1))
    assert labels.tolist() == list(digits[8:])
    assert data.class_names(config, data_dir=tmp_path) == tuple("0123456789")


def test_the_sums_of_unpacked_files_are_those_of_the_shipped_ones():
    infos = CaeImages.url_infos
    assert infos is not None
    for pair in ARCHIVES.values():
        for name in pair:
            content = gzip.decompress((conftest.ARCHIVES / name).read_bytes())
            info = infos[CaeImages.builder_configs["fashion_mnist"].url + name[:-3]]
            assert (info.size, info.checksum) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8bnot gzip", gzip.compress(b"\0\0\x08\x03")],
    ids=["empty", "not gzip", "another"],  # the time of compression would be part of the name
)
def test_a_file_that_is_not_the_original_is_refused(tiny_mnist, tmp_path, content):
    (tiny_mnist / ARCHIVES["train"][0]).write_bytes(content)
    with pytest.raises(UserError, match=r"train-images.* is not the original IDX file; install"):
        data.load_split(MNIST, "train", data_dir=tmp_path)
    assert not (tmp_path / "cae_images" / "mnist" / "1.0.0").exists()


def test_a_tilde_is_the_home_directory(tiny_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data.load_split(MNIST, "test", data_dir="~/data")
    assert (tmp_path / "data" / "cae_images" / "mnist" / "1.0.0").is_dir()


def test_a_host_out_of_reach_is_named_with_the_ways_out(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", refuse)
    with pytest.raises(UserError, match=r"storage\.googleapis\.com .*`data`.*fashion_mnist"):
        data.load_split(MNIST, "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "cifar10",
            "train",
            "`data` is 'cifar10', where nothing is; it takes fashion_mnist, mnist, kmnist, or",
        ),
        ("mnist", "val", "`split` is 'val'; it takes train, test"),
    ],
)
def test_unknown_names_are_refused(name, split, message):
    with pytest.raises(UserError, match=message):
        data.load_split(TrainConfig(data=name), split)


def test_a_data_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="`data_dir`"):
        data.load_split(FASHION, "test", data_dir=tmp_path / "file")


def _flip(path):
    """Flips every bit of the byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": _flip,
    "missing": lambda path: path.unlink(),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
}


@pytest.fixture
def records(tiny_mnist, tmp_path):
    """TFDS's records of the tiny MNIST, whose prepared copy is gone."""
    data.load_split(MNIST, "train", data_dir=tmp_path)
    (copy,) = prepared_folders(tmp_path)
    shutil.rmtree(copy)
    return tmp_path / "cae_images" / "mnist" / "1.0.0"


@pytest.mark.parametrize("name", ["dataset_info.json", "*train.array_record*"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_records_are_prepared_again(records, tiny_mnist, tmp_path, capsys, name, damage):
    raw = gzip.decompress((tiny_mnist / ARCHIVES["train"][0]).read_bytes())
    (path,) = records.glob(name)
    DAMAGE[damage](path)
    capsys.readouterr()
    images, _ = data.load_split(MNIST, "train", data_dir=tmp_path)
    assert images.tobytes() == raw[16:]
    preparing, *again, prepared = capsys.readouterr().err.splitlines()
    assert (preparing.split()[0], prepared.split()[0]) == ("Preparing", "Prepared")
    harmless = name.endswith(".json") and damage == "flipped"
    if again or not harmless:
        assert len(again) == 1
        assert again[0].startswith(f"{records}")
        assert again[0].endswith("; preparing it again")
    assert sorted(each.name for each in records.parent.iterdir()) == ["1.0.0"]


def test_records_of_other_images_are_prepared_again(records, tmp_path, monkeypatch, caplog):
    """As far as the sums of the original files are known."""
    infos = dict(CaeImages.url_infos)
    url = f"https://storage.googleapis.com/cvdf-datasets/mnist/{ARCHIVES['train'][0][:-3]}"
    infos[url] = type(infos[url])(1, "0" * 64, url)
    monkeypatch.setattr(CaeImages, "url_infos", infos)
    data.load_split(MNIST, "train", data_dir=tmp_path)
    assert f"{records} has other images than train-images-idx3-ubyte.gz; preparing" in caplog.text


def test_damaged_records_without_their_sources_are_named(records, tmp_path, monkeypatch):
    (records / "dataset_info.json").write_text("{")
    monkeypatch.delitem(named.SHIPPED, "mnist")

    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", refuse)
    message = rf"{records} is not an intact .* and cannot be prepared again: storage\.googleapis"
    with pytest.raises(UserError, match=message):
        data.load_split(MNIST, "train", data_dir=tmp_path)
    assert (records / "dataset_info.json").read_text() == "{"


def test_records_that_cannot_be_read_are_kept(records, tmp_path):
    (records / "dataset_info.json").unlink()
    (records / "dataset_info.json").mkdir()
    with pytest.raises(UserError, match=rf"{records} cannot be read \(.*dataset_info"):
        data.load_split(MNIST, "train", data_dir=tmp_path)
    assert list(records.glob("*train.array_record*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("No space left")])
def test_a_full_disk_is_told_in_one_line(tiny_mnist, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(CaeImages, "download_and_prepare", fail)
    message = (
        rf"mnist cannot be prepared in {tmp_path}/cae_images/mnist-\w+-\w+ .*No space left.*free"
    )
    with pytest.raises(UserError, match=message):
        data.load_split(MNIST, "train", data_dir=tmp_path)


def test_without_a_home_directory_a_data_dir_is_asked_for(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~nobody-of-this-name/data")
    monkeypatch.setattr(constants, "DATA_DIR", "~nobody-of-this-name/data")  # read at import
    with pytest.raises(UserError, match=r"no home directory .* pass `data_dir`"):
        data.load_split(FASHION, "test")


def _sum_of_pixels(folder, barrier, queue):
    barrier.wait()
    queue.put(int(data.load_split(FASHION, "test", data_dir=folder)[0].sum()))


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(tmp_path, test_images):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_sum_of_pixels, args=(tmp_path, barrier, queue)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    sums = [queue.get(timeout=240) for _ in processes]
    for process in processes:
        process.join()
    assert sums == [int(test_images.sum(dtype=np.int64))] * 2
    # Nothing half-written stays behind.
    (copy,) = prepared_folders(tmp_path)
    names = {path.name for path in (tmp_path / "cae_images").iterdir()}
    # TFDS writes .config, the name of a default configuration.
    assert names - {".config"} == {".lock", "fashion_mnist", copy.name}
    assert [path.name for path in (tmp_path / "cae_images" / "fashion_mnist").iterdir()] == [
        "1.0.0"
    ]
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_a_prepared_data_set_is_read_without_tfds(data_dir):
    code = """
import sys
from cae_jax import TrainConfig, data
data.load(TrainConfig(), data_dir=sys.argv[1])
assert not {"tensorflow_datasets", "etils"} & set(sys.modules)
"""
    in_process(code, data_dir)
