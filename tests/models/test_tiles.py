"""Pictures of any size: by the network in NumPy, built for the whole picture."""

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

import cae_jax
from cae_jax import UserError
from cae_jax.data.conversion import Conversion
from cae_jax.data.pictures import take_pictures, write_picture
from cae_jax.models import autoencoders, tiles
from cae_jax.models.inference import Autoencoder
from cae_jax.models.topology import convolutional
from tests.helpers import draw_parameters, nested, numpy_functions

CONVERT = Conversion(None, "none", "auto", 3)
MAKE, ORIENTATION, TAKEN = 0x010F, 0x0112, 0x9003


def model(shape, features):
    """A network of random weights, and its reconstructions of images of any size by NumPy."""
    config = cae_jax.TrainConfig(features=features, image_shape=shape)
    parameters = draw_parameters(convolutional(shape, features))
    autoencoder = Autoencoder(config, autoencoders.build_with(config, nested(parameters)))

    def expected(images_NxHxWxC):
        size = images_NxHxWxC.shape[1:]
        return numpy_functions(parameters, size)["reconstruct"](images_NxHxWxC)

    return autoencoder, expected


def drawn(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize(
    ("size", "features", "whole"),
    [
        # With the tutorial's 28 pixels a convolution is 'valid'; 8 n + 4 pixels have the same.
        ((28, 28), (2, 2, 2), (268, 228)),
        ((9, 13), (4, 4), (161, 57)),
        pytest.param((28, 32), (4, 4, 4), (500, 136), marks=pytest.mark.slow),
        pytest.param((32, 32), (4,), (62, 96), marks=pytest.mark.slow),
        pytest.param((64, 64), (4, 4, 4, 4), (448, 400), marks=pytest.mark.slow),
    ],
)
def test_tiles_equal_the_whole(size, features, whole, monkeypatch):
    """Everywhere, in sizes that are padded as the trained one is."""
    monkeypatch.setattr(tiles, "_VALUES", 1)
    autoencoder, expected = model((*size, 1), features)
    assert max(len(tiles.along(autoencoder.topology, i, n)) for i, n in enumerate(whole)) > 1
    picture = drawn(*whole)
    result = autoencoder.reconstruct(picture, full_size=True)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected(picture[None, ..., None]), atol=1e-5)


@pytest.mark.parametrize("size", [28, 32, 25, 27])
def test_the_reach_of_a_pixel(size):
    """By NumPy, in which a missing number spreads to every output that reads it."""
    width = size + 8 * 20
    autoencoder, expected = model((size, size, 1), (2, 2, 2))
    rows = np.zeros((width, width, 8, 1))
    rows[range(width), range(width)] = np.nan
    with np.errstate(invalid="ignore"):
        missing = np.isnan(expected(rows)).any(axis=(2, 3))  # [changed row, row of the output]
    before, after = tiles.reach(autoencoder.topology, 0)
    read = np.flatnonzero(missing[:, 96:104].any(axis=1))
    assert (read[0], read[-1] + 1) == (96 - before, 104 + after)


def test_other_sizes_are_continued_by_their_mirror_image():
    autoencoder, expected = model((28, 28, 1), (2, 2, 2))
    picture = drawn(31, 40)
    mirrored = np.pad(picture, ((0, 5), (0, 4)), mode="reflect")
    np.testing.assert_allclose(
        autoencoder.reconstruct(picture, full_size=True),
        expected(mirrored[None, ..., None])[:, :31, :40],
        atol=1e-5,
    )
    assert autoencoder.reconstruct(drawn(1, 3), full_size=True).shape == (1, 1, 3, 1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colors_come_back_as_they_came(channels):
    autoencoder, expected = model((12, 12, channels), (3,))
    pictures = drawn(2, 12, 12, 4)
    gray, colors, alpha = pictures[..., :1], pictures[..., :3], pictures[..., 3:]
    opaque = np.ones_like(alpha)
    if channels == 1:
        of_gray = expected(gray)
        of_colors = np.concatenate([expected(colors[..., i : i + 1]) for i in range(3)], axis=-1)
        of_alpha = np.concatenate([of_colors, alpha], axis=-1)
    else:
        three = np.repeat(gray, 3, axis=-1)
        given = [np.concatenate([x, opaque], -1)[..., :channels] for x in (three, colors)]
        of_gray = expected(given[0])[..., :3] @ np.array([[0.299], [0.587], [0.114]])
        of_colors = expected(given[1])[..., :3]
        both = np.concatenate([of_colors, alpha], axis=-1)
        of_alpha = expected(pictures) if channels == 4 else both
    for given, wanted in ((gray, of_gray), (colors, of_colors), (pictures, of_alpha)):
        result = autoencoder.reconstruct(given, full_size=True)
        np.testing.assert_allclose(result, wanted, atol=1e-5)
    pixels = np.rint(colors[0] * 255).astype(np.uint8)
    bytes_of = tiles.reconstruct(autoencoder.topology, autoencoder.params, "float32", pixels)
    floats = autoencoder.reconstruct(pixels, full_size=True)[0]
    np.testing.assert_array_equal(bytes_of, np.rint(floats * 255))


def profile(mode):
    """An ICC profile, whose bytes 16 to 19 name its colors."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    content[16:20] = {"L": b"GRAY", "CMYK": b"CMYK"}.get(mode, b"RGB ")
    return bytes(content)


def exif(**tags):
    result = Image.Exif()
    result[MAKE], result[0x8769] = "Some camera", {TAKEN: "2020:01:02 03:04:05"}
    for tag, value in tags.items():
        result[int(tag[1:])] = value
    return result


@pytest.mark.parametrize(
    ("suffix", "mode", "written"),
    [
        ("jpg", "RGB", "RGB"),
        ("jpg", "L", "L"),
        ("tif", "RGB", "RGB"),
        ("png", "LA", "LA"),
        ("png", "P", "RGB"),
        ("webp", "RGBA", "RGBA"),
        ("jpg", "CMYK", "RGB"),
        ("png", "I;16", "L"),
    ],
)
def test_a_file_keeps_what_it_says_of_the_picture(tmp_path, suffix, mode, written):
    pixels = np.rint(drawn(6, 9, 4) * 255).astype(np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode != "RGBA":
        image = image.convert({"P": "RGB"}.get(mode, mode))
        image = image.quantize(32) if mode == "P" else image
    path = tmp_path / f"a.{suffix}"
    icc = profile("L" if mode in ("LA", "I;16") else mode)
    image.save(path, exif=exif(_274=6).tobytes(), icc_profile=icc, quality=100, lossless=True)
    [read] = take_pictures(path, CONVERT)
    picture = read()
    write_picture(tmp_path / "out.png", picture)
    with Image.open(path) as before, Image.open(tmp_path / "out.png") as after:
        turned = ImageOps.exif_transpose(before).convert("RGBA")
        if mode != "I;16":  # which Pillow cuts off at 255
            np.testing.assert_array_equal(after.convert("RGBA"), turned)
        assert (after.mode, after.size) == (written, (6, 9))
        assert after.info.get("icc_profile") == (None if mode == "CMYK" else icc)
        found = after.getexif()
        assert found[MAKE] == "Some camera"
        assert found.get_ifd(0x8769)[TAKEN] == "2020:01:02 03:04:05"
        assert found.get(ORIENTATION, 1) == 1
        assert not {256, 257, 273} & set(found)  # of the pixels of a TIFF


def test_damaged_metadata_leave_the_picture(tmp_path):
    image = Image.fromarray(np.full((6, 9), 200, np.uint8))
    image.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", icc_profile=b"short")
    [read] = take_pictures(tmp_path / "a.jpg", CONVERT)
    write_picture(tmp_path / "b.png", read())
    with Image.open(tmp_path / "b.png") as after:
        assert after.size == (9, 6)
        assert "icc_profile" not in after.info


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 5, 2), np.int32), "of type int32"),
        (np.zeros((3, 0), np.uint8), "no pixels"),
        ([np.zeros((3, 5)), np.zeros((5, 3))], "differ in shape"),
        ([], "shape"),
        (np.full((3, 5), 7.0), "floats in"),
        ("nowhere.png", "not a file"),
    ],
)
def test_what_is_no_picture_is_refused(images, message):
    autoencoder, _ = model((12, 12, 1), (3,))
    with pytest.raises(UserError, match=message):
        autoencoder.reconstruct(images, full_size=True)
    with pytest.raises(UserError, match="exclude each other"):
        autoencoder.reconstruct(np.zeros((9, 9)), full_size=True, resize=True)


def test_the_command(command, run, tmp_path, test_images):
    """A folder and an array, through the tutorial's network; what is written equals Python's."""
    pixels = np.concatenate([test_images[0], test_images[1]], axis=1)[..., 0]
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.jpg", exif=exif(), quality=95)
    np.save(tmp_path / "b.npy", np.stack([pixels, 255 - pixels]))
    process = command("reconstruct", run, "photos", "b.npy", "--out", "out", "--full-size")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["a.png", "b-0000.png", "b-0001.png"]
    assert lines[3] == "3 pictures in out"
    floats = cae_jax.load(run, backend="matmul").reconstruct(pixels, full_size=True)
    written = np.asarray(Image.open(tmp_path / "out" / "b-0000.png")).astype(int)
    np.testing.assert_allclose(written, floats[0, ..., 0] * 255, atol=0.51)
    error = np.mean((written / 255 - pixels / 255) ** 2)
    assert float(lines[1].split()[1]) == pytest.approx(-10 * np.log10(error), abs=0.01)
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert (image.size, image.mode) == ((56, 28), "L")
        assert image.getexif()[MAKE] == "Some camera"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--resize",), "leave --resize out"),
        (("--background", "white"), "leave --background out"),
        ((), "the fully connected model simple takes 28 x 28 pixels only"),
    ],
)
def test_the_command_refuses(refuse, dense_run, tmp_path, flags, message):
    Image.fromarray(np.full((30, 40), 99, np.uint8)).save(tmp_path / "a.png")
    process = refuse("reconstruct", dense_run, "a.png", "--out", "out", "--full-size", *flags)
    assert process.returncode == 2
    assert message in process.stderr
    assert not (tmp_path / "out").exists()
