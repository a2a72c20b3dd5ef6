"""Images that are streamed without being prepared: each kind of source, names and memory."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from cae_jax import TrainConfig, UserError, data
from cae_jax.config import resolved
from cae_jax.data import workers
from cae_jax.data.decoding import Converter
from cae_jax.data.sources import named
from tests.data.test_own_images import (
    IMAGES,
    LABELS,
    NAMES,
    TEST_IMAGES,
    idx_folder,
    image_folder,
    npy_file,
    npz_file,
    parquet_folder,
    png,
    tfds_folder,
)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The folder in which data would be prepared."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


def trained(channels=3, **fields) -> TrainConfig:
    """The config of a run on images of 8 x 8 pixels."""
    return resolved(TrainConfig(model="simple", **fields), (8, 8, channels))


def streamed(config, path, length=7, **options):
    """The names and images of a stream, and the number of images in each block."""
    blocks = [*data.stream(data.elsewhere(config, str(path)), length, **options)]
    names = [name for some, _ in blocks for name in some]
    return names, np.concatenate([images for _, images in blocks]), [len(x) for x, _ in blocks]


def numbered(name, count):
    return [f"{name}[{i}]" for i in range(count)]


BOTH = np.concatenate([IMAGES, TEST_IMAGES])
HUB = [
    *numbered("data/train-00000-of-00002.parquet", 12),
    *numbered("data/train-00001-of-00002.parquet", 12),
    *numbered("data/test-00000-of-00001.parquet", 6),
]


@pytest.mark.parametrize(
    ("write", "names", "expected"),
    [
        (npz_file, [*numbered("x_train", 24), *numbered("x_test", 6)], BOTH),
        (npy_file, numbered("a", 24), IMAGES),
        (idx_folder, [*numbered("train", 24), *numbered("test", 6)], BOTH[..., :1]),
        (tfds_folder, [*numbered("train", 24), *numbered("test", 6)], BOTH),
        (parquet_folder, HUB, BOTH),
    ],
)
def test_arrays_and_records_come_in_their_order(tmp_path, root, write, names, expected):
    (tmp_path / "its").mkdir()
    found, images, lengths = streamed(trained(expected.shape[-1]), write(tmp_path / "its"))
    assert found == names
    assert lengths == [7] * (len(names) // 7) + [len(names) % 7]
    np.testing.assert_array_equal(images, expected)
    assert images.dtype == np.uint8
    assert not root.exists()


def test_files_have_their_paths_as_names(tmp_path, root):
    names, images, _ = streamed(trained(), image_folder(tmp_path))
    paths = [f"{NAMES[label]}/any depth/image {i}.PNG" for i, label in enumerate(LABELS)]
    assert sorted(names) == sorted(paths)
    for name, image in zip(names, images, strict=True):
        np.testing.assert_array_equal(image, IMAGES[paths.index(name)])
    assert not root.exists()


def test_a_shipped_data_set_is_read_from_its_files(tmp_path, root, monkeypatch):
    monkeypatch.setitem(named.SHIPPED, "fashion_mnist", idx_folder(tmp_path))
    names, images, _ = streamed(trained(1), "fashion_mnist")
    assert names == [*numbered("train", 24), *numbered("test", 6)]
    np.testing.assert_array_equal(images, BOTH[..., :1])
    assert not root.exists()


def test_images_are_converted_as_those_of_the_training(tmp_path):
    """By hand with Pillow, for a run that crops; a run that refused other sizes stretches."""
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 256, (8, 16), np.uint8)
    np.save(tmp_path / "wide.npy", wide[None])
    for resize, box in (("crop", (4, 0, 12, 8)), ("none", (0, 0, 16, 8))):
        _, images, _ = streamed(trained(resize=resize), tmp_path / "wide.npy")
        expected = Image.fromarray(wide).resize((8, 8), Image.Resampling.LANCZOS, box)
        np.testing.assert_array_equal(images[0], np.stack([np.asarray(expected)] * 3, -1))
    values = rng.integers(0, 4096, (3, 8, 8), np.uint16)
    np.save(tmp_path / "deep.npy", values)
    _, images, _ = streamed(trained(1, white="auto", levels=(0.0, 4095.0)), tmp_path / "deep.npy")
    np.testing.assert_array_equal(images[..., 0], np.rint(values / 4095 * 255))


def test_all_frames_are_named(tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    first, *others = (Image.fromarray(image) for image in IMAGES[:3])
    first.save(folder / "a.tif", save_all=True, append_images=others)
    names, images, _ = streamed(trained(frames="all"), folder)
    assert names == ["a.tif[0]", "a.tif[1]", "a.tif[2]"]
    np.testing.assert_array_equal(images, IMAGES[:3])
    assert streamed(trained(), folder)[0] == ["a.tif"]


def test_the_images_of_a_run_on_pairs_are_its_inputs(tmp_path):
    pairs = dataclasses.replace(trained(), pairs=("noisy", "clean"), noise="pairs")
    names, images, _ = streamed(pairs, npy_file(tmp_path))
    assert names == numbered("a", 24)
    np.testing.assert_array_equal(images, IMAGES)


def test_unreadable_images_are_named_or_left_out(tmp_path, caplog):
    folder = image_folder(tmp_path)
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad\.png .*remove it, or pass `skip_unreadable=True`"):
        streamed(trained(), folder)
    names, _, _ = streamed(trained(skip_unreadable=True), folder)
    assert len(names) == 24
    assert f"{folder}: left out: 1 unreadable" in caplog.text


def test_refusals(tmp_path):
    (tmp_path / "masks").mkdir()
    for i in range(3):
        (tmp_path / "masks" / f"{i}.png").write_bytes(png(np.eye(8, dtype=np.uint8)))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    for path, message in (
        ("masks", "has no pixel above 1 of 255; save it with a white of 255"),
        ("bad", "gives no images"),
        ("missing", "where nothing is"),
    ):
        with pytest.raises(UserError, match=message):
            streamed(trained(skip_unreadable=True), tmp_path / path)
    with pytest.raises(UserError, match="`workers` is 0"):
        streamed(trained(), tmp_path / "masks", workers=0)


@pytest.mark.parametrize("count", [1, 2])
def test_images_are_decoded_when_they_are_needed(tmp_path, monkeypatch, count):
    """With two processes at most as many are ahead as their messages have."""
    decoded, call = [], Converter.__call__
    monkeypatch.setattr(workers, "_PATIENCE", 0)
    monkeypatch.setattr(workers, "_MOST", 2)
    opened = []
    config, listed = data.elsewhere(trained(), str(image_folder(tmp_path))), workers.Workers.map

    def convert(self, item):
        decoded.append(item.key)
        return call(self, item)

    def counted(self, function, items):
        def each():
            for item in items:
                opened.append(item.key)
                yield item

        return listed(self, function, each())

    monkeypatch.setattr(Converter, "__call__", convert)
    monkeypatch.setattr(workers.Workers, "map", counted)
    for i, (names, _) in enumerate(data.stream(config, 4, workers=count), 1):
        assert len(names) == 4
        assert len(opened) <= 4 * i + (2 * count * 2 if count > 1 else 0)
    assert len(opened) == 24
    assert len(decoded) == (24 if count == 1 else 1)


def test_memory_does_not_depend_on_the_number_of_images(tmp_path):
    shape = (192, 256, 256, 3)  # 38 MB
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for i in range(shape[0]):
            file.write(np.full(shape[1:], i, np.uint8).tobytes())
    config = resolved(TrainConfig(model="simple"), (256, 256, 3))
    config = data.elsewhere(config, str(tmp_path / "a.npy"))
    tracemalloc.start()
    try:
        for names, images in data.stream(config, 4):
            assert images[0, 0, 0, 0] == int(names[0][2:-1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6  # the source's blocks of 4 MB, and four images of 0.2 MB twice


def test_a_forged_checksum_is_found(tmp_path):
    path = npz_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES[-1].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz is not a readable npz file \(Bad CRC-32"):
        streamed(trained(), path)
