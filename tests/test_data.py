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

from cae_jax import TrainConfig, UserError, data
from cae_jax.config import IMAGE_SHAPES
from cae_jax.data.idx import ARCHIVES
from cae_jax.data.tfds_builder import IdxImages
from tests import conftest


def test_arrays_are_those_of_the_archives(data_dir, test_images):
    images, labels = data.load_split("fashion_mnist", "test", data_dir=data_dir)
    raw = gzip.decompress((conftest.ARCHIVES / "t10k-labels-idx1-ubyte.gz").read_bytes())
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images, test_images)
    np.testing.assert_array_equal(labels, np.frombuffer(raw[8:], np.uint8))


def test_training_images_in_their_original_order(data_dir):
    images, labels = data.load_split("fashion_mnist", "train", data_dir=data_dir)
    raw = gzip.decompress((conftest.ARCHIVES / "train-images-idx3-ubyte.gz").read_bytes())
    assert images.shape == (60000, 28, 28, 1)
    assert images.tobytes() == raw[16:]
    assert np.bincount(labels).tolist() == [6000] * 10


def test_a_config_gets_the_first_images_of_both_splits(data_dir, test_images):
    config = TrainConfig(train_examples=200, test_examples=30)
    train, test, test_labels = data.load(config, data_dir=data_dir)
    everything = data.load(TrainConfig(), data_dir=data_dir)
    raw = gzip.decompress((conftest.ARCHIVES / "train-images-idx3-ubyte.gz").read_bytes())
    assert train.tobytes() == raw[16 : 16 + 200 * 784]
    np.testing.assert_array_equal(test, test_images[:30])
    raw = gzip.decompress((conftest.ARCHIVES / "t10k-labels-idx1-ubyte.gz").read_bytes())
    np.testing.assert_array_equal(test_labels, np.frombuffer(raw[8:38], np.uint8))
    assert [len(array) for array in everything] == [60000, 10000, 10000]


def test_a_batch_larger_than_the_data_set_is_refused(tiny_mnist, tmp_path):
    config = TrainConfig(dataset="mnist", batch_size=31)
    with pytest.raises(UserError, match="`batch_size` is 31; it takes at most the 30 images"):
        data.load(config, data_dir=tmp_path, archives=tiny_mnist)


def test_preparing_is_announced_once_on_stderr(tiny_mnist, tmp_path, capsys):
    for _ in range(2):
        data.load_split("mnist", "test", data_dir=tmp_path, archives=tiny_mnist)
    output = capsys.readouterr()
    assert output.err == f"Preparing mnist in {tmp_path}/idx_images/mnist/1.0.0 (once)\n"
    assert output.out == ""


def test_the_builder_and_the_config_know_the_same_data_sets():
    names = [source.name for source in IdxImages.BUILDER_CONFIGS]
    assert [*names, "arrays"] == list(IMAGE_SHAPES)
    assert tuple(ARCHIVES) == data.SPLITS
    # https://github.com/zalandoresearch/fashion-mnist#labels
    assert data.class_names("fashion_mnist")[8:] == ("Bag", "Ankle boot")


def test_data_is_imported_without_tfds():
    code = "import sys, cae_jax.data.images; assert 'tensorflow_datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_second_start_reads_the_cache_alone(data_dir, monkeypatch):
    images, _ = data.load_split("fashion_mnist", "train", data_dir=data_dir)
    monkeypatch.setitem(sys.modules, "cae_jax.data.store", None)  # without TFDS
    started = time.perf_counter()
    again, _ = data.load_split("fashion_mnist", "train", data_dir=data_dir)
    # 0.05 s on two cores with nothing else running; the bound is for machines that are busy.
    assert time.perf_counter() - started < 2
    np.testing.assert_array_equal(again, images)


def damage_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


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
    cache = copy / "idx_images" / "fashion_mnist" / "1.0.0" / "test.cache.npz"
    data.load_split("fashion_mnist", "test", data_dir=copy)
    intact = cache.read_bytes()
    damage(cache)
    images, _ = data.load_split("fashion_mnist", "test", data_dir=copy)
    np.testing.assert_array_equal(images, test_images)
    assert cache.read_bytes() == intact


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder of four small archives that stand in for MNIST's, with sums on record."""
    folder = tmp_path / "archives"
    folder.mkdir()
    rng = np.random.default_rng(0)
    infos = IdxImages.url_infos
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
            content = (folder / name).read_bytes()
            infos[url] = type(infos[url])(len(content), hashlib.sha256(content).hexdigest(), name)
    monkeypatch.setattr(IdxImages, "url_infos", infos)
    return folder


def test_archives_from_a_folder(tiny_mnist, tmp_path):
    images, labels = data.load_split("mnist", "train", data_dir=tmp_path, archives=tiny_mnist)
    raw = gzip.decompress((tiny_mnist / ARCHIVES["train"][0]).read_bytes())
    assert images.tobytes() == raw[16:]
    assert labels.shape == (30,)
    assert len(data.load_split("mnist", "test", data_dir=tmp_path)[0]) == 20


def test_an_archive_that_is_not_the_original_is_refused(tiny_mnist, tmp_path):
    path = tiny_mnist / ARCHIVES["train"][0]
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    with pytest.raises(UserError, match=r"not the original .*train-images.*wrong checksum"):
        data.load_split("mnist", "train", data_dir=tmp_path, archives=tiny_mnist)
    assert not (tmp_path / "idx_images" / "mnist" / "1.0.0").exists()


def test_missing_archives_are_named(tmp_path):
    (tmp_path / ARCHIVES["test"][1]).touch()
    with pytest.raises(UserError, match=r"has no train-images.*t10k-images-idx3-ubyte\.gz; it"):
        data.load_split("mnist", "train", data_dir=tmp_path / "data", archives=tmp_path)


def test_missing_archives_are_named_where_the_data_are_prepared(data_dir, tmp_path):
    with pytest.raises(UserError, match="which has no train-images"):
        data.load_split("fashion_mnist", "test", data_dir=data_dir, archives=tmp_path)
    with pytest.raises(UserError, match="which has no train-images"):
        data.load_split("fashion_mnist", "test", data_dir=data_dir, archives=tmp_path / "nowhere")


def test_a_host_out_of_reach_is_named_with_the_ways_out(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", refuse)
    with pytest.raises(UserError, match=r"storage\.googleapis\.com .*`archives`.*fashion_mnist"):
        data.load_split("mnist", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        ("cifar10", "train", "`dataset` is 'cifar10'; it takes fashion_mnist, mnist, kmnist"),
        ("mnist", "val", "`split` is 'val'; it takes train, test"),
    ],
)
def test_unknown_names_are_refused(config, split, message):
    with pytest.raises(UserError, match=message):
        data.load_split(config, split)


def test_a_data_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="`data_dir`"):
        data.load_split("fashion_mnist", "test", data_dir=tmp_path / "file")


def test_a_damaged_data_set_is_named(tiny_mnist, tmp_path):
    data.load_split("mnist", "train", data_dir=tmp_path, archives=tiny_mnist)
    folder = tmp_path / "idx_images" / "mnist" / "1.0.0"
    for path in folder.glob("*train*"):
        path.unlink()
    with pytest.raises(UserError, match=r"mnist/1\.0\.0 is damaged .*delete that directory"):
        data.load_split("mnist", "train", data_dir=tmp_path)


def _sum_of_pixels(folder, barrier, queue):
    barrier.wait()
    queue.put(int(data.load_split("fashion_mnist", "test", data_dir=folder)[0].sum()))


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
    folder = tmp_path / "idx_images" / "fashion_mnist"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "1.0.0"]
    shutil.rmtree(tmp_path)
