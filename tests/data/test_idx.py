"""The reader of IDX files: what it reads and what it refuses."""

import gzip
import struct
import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cae_jax import UserError
from cae_jax.data.sources import idx

# Without the time, which would be in the names of the tests, so that two workers' may differ.
pack = partial(gzip.compress, mtime=0)


def image_bytes(images, magic=0x0803):
    return struct.pack(">4I", magic, *images.shape) + images.tobytes()


def label_bytes(labels, magic=0x0801):
    return struct.pack(">2I", magic, len(labels)) + labels.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
LABELS = np.array([0, 9, 3, 3, 1], np.uint8)


def read(folder, images, labels):
    (folder / "images.gz").write_bytes(images)
    (folder / "labels.gz").write_bytes(labels)
    return idx.read_images(folder / "images.gz"), idx.read_labels(folder / "labels.gz")


def test_reads_what_was_written(tmp_path):
    images, labels = read(tmp_path, pack(image_bytes(IMAGES)), pack(label_bytes(LABELS)))
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_unpacked_files_are_read_whatever_their_names_say(tmp_path):
    images, labels = read(tmp_path, image_bytes(IMAGES), label_bytes(LABELS))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    assert (idx.to_bytes(images), idx.to_bytes(labels)) == (
        image_bytes(IMAGES),
        label_bytes(LABELS),
    )


GOOD_IMAGES, GOOD_LABELS = pack(image_bytes(IMAGES)), pack(label_bytes(LABELS))
MANY = struct.pack(">4I", 0x0803, 2**32 - 1, 28, 28)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (pack(image_bytes(IMAGES, 0x0801)), GOOD_LABELS, r"images\.gz .*expected the magic"),
        (GOOD_IMAGES, pack(label_bytes(LABELS, 0x0803)), r"labels\.gz .*expected the magic"),
        (
            pack(image_bytes(IMAGES)[:-1]),
            GOOD_LABELS,
            r"images\.gz .*is truncated: 3919 of the 3920",
        ),
        (pack(image_bytes(IMAGES)[:9]), GOOD_LABELS, "truncated within its header"),
        (GOOD_IMAGES[:-9], GOOD_LABELS, r"images\.gz is not an intact IDX file"),
        (pack(image_bytes(IMAGES) + b"x"), GOOD_LABELS, r"images\.gz .*has bytes after"),
        (GOOD_IMAGES + b"xyz", GOOD_LABELS, r"images\.gz is not an intact .*gzip"),
        (GOOD_IMAGES, pack(label_bytes(LABELS)[:-1]), r"labels\.gz .*4 of the 5 bytes"),
        (GOOD_IMAGES, pack(label_bytes(LABELS) + b"x"), r"labels\.gz .*has bytes after"),
        (image_bytes(IMAGES)[:-1], GOOD_LABELS, r"images\.gz .*is truncated"),
        (b"", GOOD_LABELS, r"images\.gz .*begins with 0x, expected"),
        (pack(MANY), GOOD_LABELS, r"announces \[4294967295, 28"),
    ],
)
def test_damage_is_refused_with_the_files_name(tmp_path, images, labels, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, images, labels)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"images\.gz is not an intact IDX file .*No such file"):
        idx.read_images(tmp_path / "images.gz")


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    bomb = pack(image_bytes(IMAGES) + bytes(40_000_000))
    tracemalloc.start()
    with pytest.raises(UserError, match="bytes after"):
        read(tmp_path, bomb, GOOD_LABELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_gives_the_documented_error_or_valid_arrays(tmp_path, data):
    content = bytearray(image_bytes(IMAGES))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, 20))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    archive = bytearray(pack(content))
    if data.draw(st.booleans()):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    try:
        images, labels = read(tmp_path, bytes(archive), GOOD_LABELS)
    except UserError as error:
        message = str(error)
    else:
        assert images.nbytes + 16 == len(content)
        assert labels.shape == (5,)
        return
    assert "images.gz" in message
