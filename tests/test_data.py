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
from tensorflow_datasets.core import constants

from cae_jax import TrainConfig, UserError, data
from cae_jax.config import NAMED
from cae_jax.data.tfds_builder import ARCHIVES, CaeImages
from tests import conftest

FASHION, MNIST = TrainConfig(), TrainConfig(data="mnist")


def test_arrays_are_those_of_the_archives(data_dir, test_images):
    images, labels = data.load_split(FASHION, "test", data_dir=data_dir)
    raw = gzip.decompress((conftest.ARCHIVES / "t10k-labels-idx1-ubyte.gz").read_bytes())
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images, test_images)
    np.testing.assert_array_equal(labels, np.frombuffer(raw[8:], np.uint8))


def test_training_images_in_their_original_order(data_dir):
    images, labels = data.load_split(FASHION, "train", data_dir=data_dir)
    raw = gzip.decompress((conftest.ARCHIVES / "train-images-idx3-ubyte.gz").read_bytes())
    assert images.shape == (60000, 28, 28, 1)
    assert images.tobytes() == raw[16:]
    assert np.bincount(labels).tolist() == [6000] * 10


def test_a_config_gets_the_first_images_of_both_splits(data_dir, test_images):
    config = TrainConfig(train_examples=200, test_examples=30)
    train, test = data.load(config, data_dir=data_dir)
    everything = data.load(TrainConfig(), data_dir=data_dir)
    raw = gzip.decompress((conftest.ARCHIVES / "train-images-idx3-ubyte.gz").read_bytes())
    assert train.tobytes() == raw[16 : 16 + 200 * 784]
    np.testing.assert_array_equal(test, test_images[:30])
    assert [len(array) for array in everything] == [60000, 10000]


def test_a_batch_larger_than_the_data_set_is_refused(tiny_mnist, tmp_path):
    config = TrainConfig(data="mnist", batch_size=31)
    with pytest.raises(
        UserError,
        match="`batch_size` is 31, and there are 30 training images of mnist; pass `batch_size=30`",
    ):
        data.load(config, data_dir=tmp_path, archives=tiny_mnist)


def test_preparing_is_announced_once_on_stderr(tiny_mnist, tmp_path, capsys):
    for _ in range(2):
        data.load_split(MNIST, "test", data_dir=tmp_path, archives=tiny_mnist)
    output = capsys.readouterr()
    assert output.err == f"Preparing mnist in {tmp_path}/cae_images/mnist/1.0.0 (once)\n"
    assert output.out == ""


def test_the_builder_and_the_config_know_the_same_data_sets():
    names = [source.name for source in CaeImages.BUILDER_CONFIGS]
    assert names == list(NAMED)
    assert tuple(ARCHIVES) == data.SPLITS
    # https://github.com/zalandoresearch/fashion-mnist#labels
    assert data.class_names(FASHION)[8:] == ("Bag", "Ankle boot")


def test_data_is_imported_without_tfds():
    code = "import sys, cae_jax.data.images; assert 'tensorflow_datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_second_start_reads_the_cache_alone(data_dir, monkeypatch):
    images, _ = data.load_split(FASHION, "train", data_dir=data_dir)
    monkeypatch.setitem(sys.modules, "cae_jax.data.store", None)  # without TFDS
    started = time.perf_counter()
    again, _ = data.load_split(FASHION, "train", data_dir=data_dir)
    # 0.05 s on two cores with nothing else running; the bound is for machines that are busy.
    assert time.perf_counter() - started < 2
    np.testing.assert_array_equal(again, images)


def damage_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        damage_middle,
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: np.savez(path, fingerprint="another", images=0, labels=0),
    ],
    ids=["flipped bit", "truncated", "empty", "missing", "stale"],
)
def test_bad_cache_is_rebuilt(data_dir, test_images, tmp_path, damage):
    copy = shutil.copytree(data_dir, tmp_path / "data", ignore=shutil.ignore_patterns("*train*"))
    cache = copy / "cae_images" / "fashion_mnist" / "1.0.0" / "test.cache.npz"
    data.load_split(FASHION, "test", data_dir=copy)
    intact = cache.read_bytes()
    damage(cache)
    images, _ = data.load_split(FASHION, "test", data_dir=copy)
    np.testing.assert_array_equal(images, test_images)
    assert cache.read_bytes() == intact


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder of four small archives that stand in for MNIST's, with sums on record."""
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
    return folder


def test_archives_from_a_folder(tiny_mnist, tmp_path):
    images, labels = data.load_split(MNIST, "train", data_dir=tmp_path, archives=tiny_mnist)
    raw = gzip.decompress((tiny_mnist / ARCHIVES["train"][0]).read_bytes())
    assert images.tobytes() == raw[16:]
    assert labels.shape == (30,)
    assert len(data.load_split(MNIST, "test", data_dir=tmp_path)[0]) == 20


def test_unpacked_and_recompressed_files_are_taken_by_their_content(tiny_mnist, tmp_path):
    for name in ARCHIVES["train"]:
        path = tiny_mnist / name
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    for name in ARCHIVES["test"]:
        path = tiny_mnist / name
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    images, _ = data.load_split(MNIST, "train", data_dir=tmp_path, archives=tiny_mnist)
    content = (tiny_mnist / ARCHIVES["train"][0]).with_suffix("").read_bytes()
    assert images.tobytes() == content[16:]
    assert len(data.load_split(MNIST, "test", data_dir=tmp_path)[0]) == 20


def test_the_sums_of_unpacked_files_are_those_of_the_shipped_ones():
    infos = CaeImages.url_infos
    assert infos is not None
    for pair in ARCHIVES.values():
        for name in pair:
            content = gzip.decompress((conftest.ARCHIVES / name).read_bytes())
            info = infos[CaeImages.builder_configs["fashion_mnist"].url + name[:-3]]
            assert (info.size, info.checksum) == (len(content), hashlib.sha256(content).hexdigest())


def _recompress(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content), 1))


@pytest.mark.parametrize(
    "change",
    [
        _recompress,
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
        lambda path: path.write_bytes(b"\x1f\x8bnot gzip"),
        lambda path: path.write_bytes(b""),
    ],
)
@pytest.mark.parametrize("prepared", [False, True])
def test_an_archive_that_is_not_the_original_is_refused(tiny_mnist, tmp_path, change, prepared):
    if prepared:
        data.load_split(MNIST, "train", data_dir=tmp_path, archives=tiny_mnist)
    path = tiny_mnist / ARCHIVES["train"][0]
    change(path)
    with pytest.raises(UserError, match=r"train-images.* not the original .*wrong checksum"):
        data.load_split(MNIST, "train", data_dir=tmp_path, archives=tiny_mnist)
    assert (tmp_path / "cae_images" / "mnist" / "1.0.0").exists() == prepared


def test_missing_archives_are_an_error_where_the_data_are_prepared(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"`archives` is .*nowhere, which has no train-images"):
        data.load_split(
            FASHION,
            "test",
            data_dir=data_dir,
            archives=tmp_path / "nowhere",
        )


def test_a_tilde_is_the_home_directory(tiny_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data.load_split(MNIST, "test", data_dir="~/data", archives="~/archives")
    assert (tmp_path / "data" / "cae_images" / "mnist" / "1.0.0").is_dir()


def test_missing_archives_are_named(tmp_path):
    (tmp_path / ARCHIVES["test"][1]).touch()
    with pytest.raises(UserError, match=r"has no train-images.*t10k-images-idx3-ubyte\.gz; it"):
        data.load_split(MNIST, "train", data_dir=tmp_path / "data", archives=tmp_path)


def test_missing_archives_are_named_where_the_data_are_prepared(data_dir, tmp_path):
    with pytest.raises(UserError, match="which has no train-images"):
        data.load_split(FASHION, "test", data_dir=data_dir, archives=tmp_path)
    with pytest.raises(UserError, match="which has no train-images"):
        data.load_split(
            FASHION,
            "test",
            data_dir=data_dir,
            archives=tmp_path / "nowhere",
        )


def test_a_host_out_of_reach_is_named_with_the_ways_out(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", refuse)
    with pytest.raises(UserError, match=r"storage\.googleapis\.com .*`archives`.*fashion_mnist"):
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


@pytest.mark.parametrize("name", ["dataset_info.json", "*train.array_record*"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_data_set_is_prepared_again(tiny_mnist, tmp_path, capsys, name, damage):
    expected = data.load_split(MNIST, "train", data_dir=tmp_path, archives=tiny_mnist)
    folder = tmp_path / "cae_images" / "mnist" / "1.0.0"
    (path,) = folder.glob(name)
    DAMAGE[damage](path)
    (folder / "train.cache.npz").unlink()
    capsys.readouterr()
    images, labels = data.load_split(MNIST, "train", data_dir=tmp_path, archives=tiny_mnist)
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])
    err = capsys.readouterr().err
    harmless = name.endswith(".json") and damage in ("flipped", "missing")
    if err or not harmless:
        assert err.startswith(f"Preparing mnist in {folder} again, because it is damaged: ")
        assert len(err.splitlines()) == 1
    assert sorted(each.name for each in folder.parent.iterdir()) == [".lock", "1.0.0"]


def test_a_damaged_data_set_without_its_sources_is_named(tiny_mnist, tmp_path, monkeypatch):
    data.load_split(MNIST, "train", data_dir=tmp_path, archives=tiny_mnist)
    folder = tmp_path / "cae_images" / "mnist" / "1.0.0"
    (folder / "dataset_info.json").write_text("{")
    (folder / "train.cache.npz").unlink()

    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", refuse)
    message = rf"{folder} is damaged \(.*\) and cannot be prepared again: storage\.googleapis"
    with pytest.raises(UserError, match=message):
        data.load_split(MNIST, "train", data_dir=tmp_path)
    assert (folder / "dataset_info.json").read_text() == "{"


def test_a_data_set_that_cannot_be_read_is_kept(tiny_mnist, tmp_path):
    data.load_split(MNIST, "train", data_dir=tmp_path, archives=tiny_mnist)
    folder = tmp_path / "cae_images" / "mnist" / "1.0.0"
    (folder / "train.cache.npz").unlink()
    (folder / "dataset_info.json").unlink()
    (folder / "dataset_info.json").mkdir()
    with pytest.raises(UserError, match=rf"{folder} cannot be read \(.*dataset_info"):
        data.load_split(MNIST, "train", data_dir=tmp_path, archives=tiny_mnist)
    assert list(folder.glob("*train.array_record*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("No space left")])
def test_a_full_disk_is_told_in_one_line(tiny_mnist, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(CaeImages, "download_and_prepare", fail)
    message = (
        rf"mnist cannot be prepared in {tmp_path}/cae_images/mnist/1\.0\.0 .*No space left.*free"
    )
    with pytest.raises(UserError, match=message):
        data.load_split(MNIST, "train", data_dir=tmp_path, archives=tiny_mnist)


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
    folder = tmp_path / "cae_images" / "fashion_mnist"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "1.0.0"]
    shutil.rmtree(tmp_path)
