"""Any image as uint8 pixels of one size and number of channels."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from cae_jax import UserError
from cae_jax.data import files
from cae_jax.data.conversion import Conversion
from cae_jax.data.files import UnreadableError
from cae_jax.data.pixels import check_shape, check_size


def convert(image, size=None, resize="crop", background="auto", channels=1):
    with image if isinstance(image, Image.Image) else contextlib.nullcontext():
        return Conversion(size, resize, background, channels)(image, "the image")


def saved(image, folder, name="image.png", **options):
    image.save(folder / name, **options)
    return files.open_image(folder / name, name)


def rgb(*rows):
    return Image.fromarray(np.array(rows, np.uint8))


def test_a_palette_gives_its_colors(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    pixels = convert(saved(image, tmp_path), channels=3)
    assert pixels.tolist() == [[[200, 100, 50], [10, 20, 30]]]


def test_colors_become_gray_by_the_weights_of_itu_r_601():
    pixels = convert(rgb([[255, 0, 0], [0, 255, 0], [0, 0, 255]]))
    # 0.299, 0.587 and 0.114 of 255
    assert pixels[..., 0].tolist() == [[76, 150, 29]]


def test_16_bits_are_divided_by_257(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535, 128, 129, 65406]], np.uint16)
    for name in ("image.png", "image.tif"):
        image = saved(Image.fromarray(values), tmp_path, name)
        assert files.header(image, "x") == ((1, 7), 1)
        assert convert(image)[..., 0].tolist() == [[0, 1, 128, 255, 0, 1, 254]]


def test_floats_of_a_tiff_are_white_at_1(tmp_path):
    image = saved(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), tmp_path, "image.tif")
    assert convert(image)[..., 0].tolist() == [[0, 128, 255]]
    image = saved(Image.fromarray(np.array([[0, 300]], np.float32)), tmp_path, "image.tif")
    with pytest.raises(UserError, match=r"the image has floats in \[0, 300\]; .*in \[0, 1\]"):
        convert(image)


def test_cmyk_is_the_complement(tmp_path):
    image = Image.new("CMYK", (1, 1), (255, 0, 0, 0))  # cyan
    pixels = convert(saved(image, tmp_path, "image.tif"), channels=3)
    assert pixels.tolist() == [[[0, 255, 255]]]


def test_an_image_is_turned_by_its_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    for name in ("image.png", "image.tif"):
        opened = saved(image, tmp_path, name, exif=exif)
        assert files.header(opened, "x") == ((3, 2), 1)
        assert convert(opened)[..., 0].tolist() == [[4, 1], [5, 2], [6, 3]]
    jpeg = saved(Image.new("RGB", (40, 20)), tmp_path, "image.jpg", exif=exif)
    assert files.header(jpeg, "x") == ((40, 20), 3)
    assert convert(jpeg).shape == (40, 20, 1)


WIDE = np.zeros((8, 48), np.uint8)
WIDE[:, 12:36] = 100


def test_crop_takes_the_middle():
    pixels = convert(Image.fromarray(WIDE), (4, 4), "crop")
    assert pixels.shape == (4, 4, 1)
    assert (pixels == 100).all()


def test_fit_leaves_borders_of_the_background():
    for background, border in (("auto", 0), ("black", 0), ("white", 255)):
        image = Image.new("L", (16, 8), 100)
        pixels = convert(image, (8, 8), "fit", background)[..., 0]
        assert (pixels[2:6] == 100).all()
        assert (pixels[[0, 1, 6, 7]] == border).all()
    pixels = convert(Image.new("RGB", (8, 16), (9, 9, 9)), (8, 8), "fit", channels=4)
    assert (pixels[:, 2:6] == [9, 9, 9, 255]).all()
    assert (pixels[:, :2, 3] == 0).all()


def test_fit_of_an_extreme_image_keeps_one_pixel():
    pixels = convert(Image.new("L", (1000, 1), 255), (4, 4), "fit")
    assert (pixels[..., 0] == 255).sum() == 4


def lanczos(values, size):
    """Lanczos's filter of three lobes along the first axis, from its formula, without rounding."""
    scale = len(values) / size
    centers = (np.arange(size) + 0.5) * scale
    offsets = (np.arange(len(values)) + 0.5 - centers[:, None]) / max(scale, 1)
    weights = np.where(np.abs(offsets) < 3, np.sinc(offsets) * np.sinc(offsets / 3), 0)
    return weights / weights.sum(1, keepdims=True) @ values


@pytest.mark.parametrize("size", [(5, 7), (40, 30)])
def test_stretch_filters_as_lanczos(size):
    values = np.random.default_rng(0).integers(60, 200, (24, 20)).astype(float)
    expected = lanczos(lanczos(values, size[0]).T, size[1]).T
    pixels = convert(Image.fromarray(values.astype(np.uint8)), size, "stretch")[..., 0]
    # Pillow rounds after each direction.
    assert np.abs(pixels - np.clip(expected, 0, 255)).max() <= 1.1


def test_none_refuses_another_size():
    with pytest.raises(UserError, match="the image has 8 x 48 pixels, and `image_size` is 4 x 4"):
        convert(Image.fromarray(WIDE), (4, 4), "none")


def test_a_large_jpeg_is_reduced_well(tmp_path):
    image = saved(Image.new("RGB", (640, 480), (90, 120, 200)), tmp_path, "image.jpg")
    pixels = convert(image, (6, 8), channels=3)
    assert pixels.shape == (6, 8, 3)
    assert np.abs(pixels.astype(int) - [90, 120, 200]).max() <= 2  # JPEG loses a little


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
        (np.array([[0, 0.25, 1]], np.float16), [0, 64, 255]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0, 257, 65535]], ">u2"), [0, 1, 255]),
        (np.array([[0, 7, 255]], np.uint8), [0, 7, 255]),
    ],
)
def test_arrays_become_uint8(values, expected):
    pixels = convert(values)
    assert pixels.dtype == np.uint8
    assert pixels[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 255.0]]), r"the image has floats in \[0, 255\].*divide"),
        (np.array([[0.0, np.nan]]), "the image has floats in .*finite"),
        (np.array([[0, 255]], np.int64), "the image is of type int64; images take uint8"),
    ],
)
def test_other_arrays_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        convert(values)


def test_a_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "image.png"
    Image.new("1", (8_000, 8_000)).save(path)  # 8 kB
    with pytest.raises(UnreadableError, match=r"8000 x 8000 pixels in .*max_pixels=64000000"):
        convert(files.open_image(path, "image.png"))
    large = Conversion(None, "crop", "auto", 1, max_pixels=64_000_000)
    assert large(files.open_image(path, "image.png"), "image.png").shape == (8000, 8000, 1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 3, 8, 9), "looks like channels first"),
        ((5, 1, 28, 28), "looks like channels first"),
        ((5, 8, 9, 2), "1, 3 or 4 channels"),
        ((5, 784), "reshape flattened images"),
        ((0, 8, 8), "holds no images"),
    ],
)
def test_shapes_of_arrays(shape, message):
    with pytest.raises(UserError, match=rf"the file has .*{message}"):
        check_shape(shape, "the file")
    for size, problem in (((3, 9), "at least 4 x 4"), ((100_000, 100_000), "at most 50000000")):
        with pytest.raises(
            UserError, match=f"the file has {size[0]} x {size[1]} pixels.*{problem}"
        ):
            check_size(size, "the file")
    assert check_shape((5, 8, 9), "the file") == (8, 9, 1)
    assert check_shape((5, 8, 9, 4), "the file") == (8, 9, 4)
