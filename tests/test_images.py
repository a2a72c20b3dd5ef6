"""Images from files, and images as models take them."""

import io
import pickle
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cae_jax import UserError
from cae_jax.data.images import prepare_images, read_images, scale, write_png

SHAPE = (28, 28, 1)


@pytest.fixture
def pixels(test_images):
    return test_images[0, :, :, 0]


def test_png_and_npy_keep_their_values(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "b.npy", pixels[None, :, :, None] / 255)
    floats = (pixels / 255).astype(np.float32)
    for name, expected in [("a.png", pixels), ("a.npy", pixels), ("b.npy", floats)]:
        images = read_images(tmp_path / name, SHAPE)
        assert images.dtype == expected.dtype
        np.testing.assert_array_equal(images, expected[None, :, :, None])


def test_written_png_reads_back(tmp_path, pixels):
    write_png(tmp_path / "a.png", pixels[..., None] / 255)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_empty_array_is_fine(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((0, 28, 28), np.uint8))
    assert read_images(tmp_path / "a.npy", SHAPE).shape == (0, 28, 28, 1)


def test_resize_takes_other_sizes_and_colours(tmp_path):
    # White on the left half, black on the right one.
    half = np.zeros((56, 112, 3), np.uint8)
    half[:, :56] = 255
    Image.fromarray(half).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", half[None, ..., 0] / 255)
    for name in ("a.png", "a.npy"):
        images = read_images(tmp_path / name, SHAPE, resize=True)
        assert images.shape == (1, 28, 28, 1)
        assert images[0, :, :12].min() > 0.95
        assert images[0, :, 16:].max() < 0.05


def save_archive(path):
    with path.open("wb") as file:
        np.savez(file, x=1)


def save_pickle(path):
    path.write_bytes(pickle.dumps([1, 2]))


def save_bomb(path):
    # 20,000 x 20,000 pixels in 49 kB
    Image.new("1", (20000, 20000)).save(path)


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("a.png", lambda p: Image.new("RGB", (28, 28)).save(p), "mode RGB.*`resize=True`"),
        ("a.png", lambda p: Image.new("L", (32, 28)).save(p), "32 x 28 pixels.*`resize=True`"),
        ("a.png", lambda p: Image.new("I;16", (28, 28)).save(p), "mode I;16"),
        ("a.png", lambda p: p.write_bytes(b"no picture"), "not an intact PNG"),
        ("a.png", save_bomb, "not an intact PNG|more than"),
        ("a.npy", lambda p: np.save(p, np.zeros((2, 5, 5))), r"shape \[2, 5, 5, 1\]"),
        ("a.npy", lambda p: np.save(p, np.zeros((2, 28, 28), int)), "images are int64"),
        ("a.npy", lambda p: np.save(p, np.array([{}])), "not a readable array"),
        ("a.npy", save_pickle, "not a readable array"),
        ("a.npy", lambda p: p.write_bytes(b""), "not a readable array"),
        ("a.npy", save_archive, "not a readable array"),
        ("a.npy", lambda p: p.write_bytes(b"PK\3\4 and no more"), "not a readable array"),
        ("a.jpg", lambda p: p.touch(), r"files end in \.png or \.npy"),
        ("a.png", lambda p: None, "is not a file"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, name, save, message):
    path = tmp_path / name
    save(path)
    with pytest.raises(UserError, match=message) as error:
        read_images(path, SHAPE)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def file_bytes(save, *arguments):
    file = io.BytesIO()
    save(file, *arguments)
    return file.getvalue()


INTACT = {
    "a.npy": file_bytes(np.save, np.zeros((2, 28, 28), np.uint8)),
    "a.png": file_bytes(Image.new("L", (28, 28)).save, "PNG"),
}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(INTACT)), data=st.data())
def test_any_damage_gives_the_documented_error_or_images(tmp_path, name, data):
    content = bytearray(INTACT[name])
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, 140))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    path = tmp_path / name
    path.write_bytes(content)
    for resize in (False, True):
        message = ""
        try:
            assert read_images(path, SHAPE, resize=resize).shape[1:] == (28, 28, 1)
        except UserError as error:
            message = str(error)
        assert not message or str(path) in message
        assert "\n" not in message


@pytest.mark.parametrize(
    "shape", [(10**6, 10**6), (2**62, 4), (2**40, 28, 28), (-1, 28, 28), ("x",)]
)
@pytest.mark.parametrize("kind", ["|u1", "<f8", "|O", "<U999999999", "|V100"])
def test_an_array_that_announces_what_it_does_not_hold(tmp_path, shape, kind):
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    magic = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
    (tmp_path / "a.npy").write_bytes(magic + header.encode() + bytes(100))
    with pytest.raises(UserError, match="not a readable array"):
        read_images(tmp_path / "a.npy", SHAPE)


def test_resize_refuses_other_types(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 5, 5), np.int64))
    with pytest.raises(UserError, match="int64; `resize=True` takes"):
        read_images(tmp_path / "a.npy", SHAPE, resize=True)


def test_any_image_shape(tmp_path):
    """The shape is the caller's, rows before columns."""
    pixels = np.arange(20 * 12, dtype=np.uint8).reshape(20, 12)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", pixels)
    for name in ("a.png", "a.npy"):
        images = read_images(tmp_path / name, (20, 12, 1))
        np.testing.assert_array_equal(images, pixels[None, :, :, None])
        assert read_images(tmp_path / name, (10, 6, 1), resize=True).shape == (1, 10, 6, 1)
        with pytest.raises(UserError, match=r"28 x 28 pixels"):
            read_images(tmp_path / name, SHAPE)


def test_color_images_keep_their_channels():
    images = np.zeros((2, 8, 6, 3), np.uint8)
    assert prepare_images(images, (8, 6, 3)) is images
    with pytest.raises(UserError, match=r"shape \[2, 8, 6\]; they take \[N, 8, 6, 3\]"):
        prepare_images(images[..., 0], (8, 6, 3))


def test_scale_divides_bytes_and_keeps_floats(pixels):
    floats = scale(jnp.asarray(pixels))
    assert floats.dtype == jnp.float32
    np.testing.assert_allclose(floats, pixels / 255, rtol=1e-6)
    assert scale(floats) is floats
