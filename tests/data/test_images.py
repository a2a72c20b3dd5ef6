"""Images from files, and images as models take them."""

import io
import pickle
import re
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cae_jax import TrainConfig, UserError
from cae_jax.data import files
from cae_jax.data.conversion import Conversion
from cae_jax.data.images import (
    conversion_of,
    prepare_images,
    take_images,
    write_png,
)
from cae_jax.models.autoencoders import scale

SHAPE = (28, 28, 1)
LANCZOS = Image.Resampling.LANCZOS


def to(shape, resize="stretch", background="auto"):
    return Conversion(shape[:2], resize, background, shape[2])


@pytest.fixture
def pixels(test_images):
    return test_images[0, :, :, 0]


def test_png_and_npy_keep_their_values(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "b.npy", pixels[None, :, :, None] / 255)
    floats = (pixels / 255).astype(np.float32)
    for name, expected in [("a.png", pixels), ("a.npy", pixels), ("b.npy", floats)]:
        images = take_images(tmp_path / name, to(SHAPE))
        assert images.dtype == expected.dtype
        np.testing.assert_array_equal(images, expected[None, :, :, None])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_written_png_reads_back(tmp_path, channels, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, channels), np.uint8)
    write_png(tmp_path / "a.png", pixels / 255)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    np.testing.assert_array_equal(take_images(tmp_path / "a.png", to(pixels.shape)), pixels[None])


def test_a_png_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    def full(self, file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_png(path, np.zeros((6, 4, 3)))
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff", "gif", "jpg"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_formats(tmp_path, suffix, mode):
    """As Pillow decodes them; in two of them the values are others than those that were saved."""
    ramp = np.arange(24, dtype=np.uint8).reshape(6, 4) * 10
    image = Image.fromarray(ramp).convert(mode)
    path = tmp_path / f"a.{suffix}"
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    if suffix in ("gif", "tiff"):  # of several frames the first one
        image.save(path, save_all=True, append_images=[Image.new(mode, image.size)])
    shape = (6, 4, len(mode))
    images = take_images(path, to(shape), resize=suffix == "webp")  # has RGB alone
    with Image.open(path) as opened:
        np.testing.assert_array_equal(images[0], np.asarray(opened.convert(mode)).reshape(shape))
    exact = 0 if suffix not in ("jpg", "gif") else 20
    assert np.abs(images[0].astype(int) - np.asarray(image).reshape(shape)).max() <= exact


def test_what_keeps_all_values_needs_no_resize(tmp_path):
    gray = np.array([[0, 1, 2, 255]] * 4, np.uint8)
    bits = gray > 1
    palette = Image.fromarray(gray).convert("P")
    palette.putpalette([9, 8, 7, 60, 50, 40] + [0] * 756 + [1, 2, 3, 250, 251, 252])
    colors = np.asarray(palette.convert("RGB"))
    opaque = np.full((4, 4, 1), 255)
    for i, (image, pixels) in enumerate(
        [
            (Image.fromarray(gray), np.stack([gray] * 3, axis=-1)),
            (Image.fromarray(bits), np.stack([bits * 255] * 3, axis=-1)),
            (palette, colors),
        ]
    ):
        image.save(tmp_path / f"{i}.png")
        np.testing.assert_array_equal(take_images(tmp_path / f"{i}.png", to((4, 4, 3)))[0], pixels)
        expected = np.concatenate([pixels, opaque], axis=-1)
        np.testing.assert_array_equal(
            take_images(tmp_path / f"{i}.png", to((4, 4, 4)))[0], expected
        )
    palette.save(tmp_path / "a.png", transparency=0)
    with pytest.raises(UserError, match="mode P with transparency; pass 4 x 4 pixels of 8-bit col"):
        take_images(tmp_path / "a.png", to((4, 4, 3)))
    rgba = take_images(tmp_path / "a.png", to((4, 4, 4)))[0]
    np.testing.assert_array_equal(rgba, np.dstack([colors, np.where(gray == 0, 0, 255)]))


def test_invisible_colors_do_not_show_where_an_image_shrinks(tmp_path):
    """As Pillow resizes images with transparency, too."""
    rgba = np.random.default_rng(0).integers(0, 256, (12, 8, 4), np.uint8)
    rgba[::2, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", (rgba / 255).astype(np.float32))
    expected = Image.fromarray(rgba).resize((4, 6), Image.Resampling.LANCZOS)
    for name in ("a.png", "a.npy"):
        images = take_images(tmp_path / name, to((6, 4, 4)), resize=True)
        np.testing.assert_array_equal(images[0], np.asarray(expected))


def test_empty_array_is_fine(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((0, 28, 28), np.uint8))
    assert take_images(tmp_path / "a.npy", to(SHAPE)).shape == (0, 28, 28, 1)


def save_archive(path):
    with path.open("wb") as file:
        np.savez(file, x=1)


def save_pickle(path):
    path.write_bytes(pickle.dumps([1, 2]))


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("a.png", lambda p: Image.new("RGB", (28, 28)).save(p), "mode RGB.*`resize=True`"),
        ("a.png", lambda p: Image.new("L", (32, 28)).save(p), "28 x 32 pixels.*`resize=True`"),
        ("a.png", lambda p: Image.new("I;16", (28, 27)).save(p), "27 x 28 pixels"),
        ("a.png", lambda p: Image.new("L", (28, 28)).save(p, transparency=0), "transparency.*`res"),
        ("a.png", lambda p: p.write_bytes(b"no picture"), "begins as none of PNG"),
        ("a.jpg", lambda p: p.touch(), "not a readable image"),
        ("a.npy", lambda p: np.save(p, np.zeros((2, 5, 5))), r"shape \[2, 5, 5\]; it takes"),
        ("a.npy", lambda p: np.save(p, np.zeros((2, 28, 28, 4))), r"shape \[2, 28, 28, 4\]"),
        ("a.npy", lambda p: np.save(p, np.zeros((32, 32, 3))), r"shape \[32, 32, 3\].*`resize"),
        ("a.npy", lambda p: np.save(p, np.zeros(783)), r"shape \[783\].*flattened \[784\]"),
        ("a.npy", lambda p: np.save(p, np.zeros((784, 784))), "784 flattened images or one of 784"),
        ("a.npy", lambda p: np.save(p, np.float32(1)), r"shape \[\];"),
        ("a.npy", lambda p: np.save(p, np.zeros((2, 28, 28), int)), "is of type int64"),
        ("a.npy", lambda p: np.save(p, np.array([{}])), "not a readable array"),
        ("a.npy", save_pickle, "not a readable array"),
        ("a.npy", lambda p: p.write_bytes(b""), "not a readable array"),
        ("a.npy", save_archive, "not a readable array"),
        ("a.npy", lambda p: p.write_bytes(b"PK\3\4 and no more"), "not a readable array"),
        ("a.txt", lambda p: p.touch(), r"files end in \.png, \.jpg, .*, \.npy$"),
        ("a.png", lambda p: None, "is not a file"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, name, save, message):
    path = tmp_path / name
    save(path)
    with pytest.raises(UserError, match=message) as error:
        take_images(path, to(SHAPE))
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


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
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
            assert take_images(path, to(SHAPE), resize=resize).shape[1:] == (28, 28, 1)
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
        take_images(tmp_path / "a.npy", to(SHAPE))


def test_resize_refuses_other_types(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 5, 5), np.int64))
    with pytest.raises(UserError, match="int64; images take uint8"):
        take_images(tmp_path / "a.npy", to(SHAPE), resize=True)


def test_any_image_shape(tmp_path):
    """The shape is the caller's, rows before columns."""
    pixels = np.arange(20 * 12, dtype=np.uint8).reshape(20, 12)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", pixels)
    for name in ("a.png", "a.npy"):
        images = take_images(tmp_path / name, to((20, 12, 1)))
        np.testing.assert_array_equal(images, pixels[None, :, :, None])
        assert take_images(tmp_path / name, to((10, 6, 1)), resize=True).shape == (1, 10, 6, 1)
        with pytest.raises(UserError, match=r"28 x 28 pixels"):
            take_images(tmp_path / name, to(SHAPE))


@pytest.fixture
def read(tmp_path):
    """Saves an image or array and reads it with `resize` at its own size."""

    def call(image, shape=None, **options):
        save = {name: options.pop(name) for name in ("transparency", "exif") if name in options}
        if isinstance(image, np.ndarray):
            path, size = tmp_path / "a.npy", image.shape
            np.save(path, image)
        else:
            path, size = tmp_path / "a.png", image.size[::-1]
            image.save(path, **save)
        resize, background = options.get("resize", True), options.get("background", "auto")
        convert = to(shape or (*size, 1), background=background)
        return take_images(path, convert, resize=resize)

    return call


INK = np.array([[0, 255, 51]], np.uint8)  # opacity: none, full, a fifth


@pytest.mark.parametrize(
    ("color", "background", "expected"),
    [
        (0, "auto", [255, 0, 204]),  # dark ink on white
        (255, "auto", [0, 255, 51]),  # light ink on black
        (0, "black", [0, 0, 0]),
        (0, "white", [255, 0, 204]),
        (255, "white", [255, 255, 255]),
        (100, "black", [0, 100, 20]),
    ],
)
def test_transparency_shows_the_background(read, color, background, expected):
    plane = np.full_like(INK, color)
    hidden = np.where(INK == 0, 255 - plane, plane)  # the colors of invisible pixels do not matter
    for mode, bands in (("LA", [hidden, INK]), ("RGBA", [hidden, hidden, hidden, INK])):
        image = Image.merge(mode, [Image.fromarray(band) for band in bands])
        images = read(image, background=background)
        assert images[0, 0, :, 0].tolist() == expected


def test_transparency_of_palettes_and_single_values(read):
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 0, 255, 255, 255])  # red is invisible
    images = read(palette, transparency=bytes([0, 255, 255]), background="white")
    assert images[0, 0, :, 0].tolist() == [255, 0, 255]
    gray = Image.fromarray(np.array([[7, 8, 255]], np.uint8))
    assert read(gray, transparency=7)[0, 0, :, 0].tolist() == [0, 8, 255]
    assert read(gray, transparency=7, background="white")[0, 0, :, 0].tolist() == [255, 8, 255]
    wide = Image.fromarray(np.array([[65535, 257, 65534]], np.uint16))
    assert read(wide, transparency=65535, background="black")[0, 0, :, 0].tolist() == [0, 1, 255]


def test_an_image_without_visible_pixels_is_black(read):
    assert read(Image.new("RGBA", (3, 2))).tolist() == np.zeros((1, 2, 3, 1)).tolist()


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, np.rot90),  # shown turned clockwise by a quarter
        (7, lambda x: np.rot90(x, 2).T),
        (8, lambda x: np.rot90(x, -1)),
    ],
)
def test_exif_turns_an_image_upright(read, orientation, stored):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(upright)))
    for resize in (False, True):
        images = read(image, (2, 3, 1), exif=exif, resize=resize)
        np.testing.assert_array_equal(images[0, ..., 0], upright)


def test_damaged_exif_does_not_spoil_an_image(read, pixels):
    images = read(Image.fromarray(pixels), exif=b"MM\0*\xff\xff")
    np.testing.assert_array_equal(images[0, ..., 0], pixels)


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (24,), (5, 6, 4), (5, 6, 4, 1), (5, 24)])
def test_every_form_of_an_array(read, shape, dtype, resize):
    array = (np.arange(np.prod(shape)) % 2).astype(dtype)
    array = (array * (255 if dtype == np.uint8 else 1)).reshape(shape)
    if resize and shape == (5, 24):
        with pytest.raises(UserError, match=r"\[5, 24\]: 5 flattened images or one of 5 x 24 "):
            read(array, (6, 4, 1), resize=True)
        return
    images = read(array, (6, 4, 1), resize=resize)
    assert images.dtype == dtype
    np.testing.assert_array_equal(images, array.reshape(-1, 6, 4, 1))


@pytest.mark.parametrize("shape", [(9, 7, 3), (2, 9, 7, 3)])
def test_colors_become_gray_as_in_pillow(read, shape):
    colors = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    images = colors.reshape(-1, 9, 7, 3)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    np.testing.assert_array_equal(read(colors, (9, 7, 1))[..., 0], expected)
    np.testing.assert_array_equal(read(colors / 255, (9, 7, 1))[..., 0], expected)
    small = [Image.fromarray(gray).resize((4, 6), Image.Resampling.LANCZOS) for gray in expected]
    np.testing.assert_array_equal(read(colors, (6, 4, 1))[..., 0], np.stack(small))


def test_colors_for_a_color_model(read):
    colors = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    np.testing.assert_array_equal(read(colors, (6, 4, 3), resize=False), colors[None])
    np.testing.assert_array_equal(read(Image.fromarray(colors), (6, 4, 3)), colors[None])
    gray = read(colors[..., 0], (6, 4, 3))
    np.testing.assert_array_equal(gray, np.stack([colors[None, ..., 0]] * 3, axis=-1))


@pytest.mark.parametrize("shape", [(9, 7, 4), (9, 7, 2), (2, 9, 7, 4), (2, 3, 9, 7), (2, 0, 7)])
def test_resize_refuses_other_shapes(read, shape):
    with pytest.raises(
        UserError,
        match=rf"a.npy has shape {re.escape(str(list(shape)))}(; `res|, which looks like ch)",
    ):
        read(np.zeros(shape, np.uint8), (6, 4, 1))


def test_masks_are_white_or_refused(read):
    mask = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(read(mask)[0, ..., 0], mask * 255)
    np.testing.assert_array_equal(read(Image.fromarray(mask))[0, ..., 0], mask * 255)
    np.testing.assert_array_equal(prepare_images(mask[None], (4, 4, 1))[0, ..., 0], mask * 255)
    np.testing.assert_array_equal(read(mask.astype(np.float64))[0, ..., 0], mask)
    numbers = mask.astype(np.uint8)
    for image in (numbers, Image.fromarray(numbers), Image.fromarray(numbers.astype(np.uint16))):
        with pytest.raises(UserError, match="up to 1, which is black for"):
            read(image)
    assert not read(numbers * 0).any()


def test_a_path_in_the_home(tmp_path, monkeypatch, pixels):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "a.npy", pixels)
    assert take_images("~/a.npy", to(SHAPE)).shape == (1, *SHAPE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npy").rename("~no user.npy")
    assert take_images("~no user.npy", to(SHAPE)).shape == (1, *SHAPE)


def test_color_images_keep_their_channels():
    images = np.zeros((2, 8, 6, 3), np.uint8)
    assert np.shares_memory(prepare_images(images, (8, 6, 3)), images)
    with pytest.raises(
        UserError, match=r"shape \[2, 8, 6\]; it takes \[8, 6, 3\] or \[N, 8, 6, 3\]"
    ):
        prepare_images(images[..., 0], (8, 6, 3))


def test_scale_divides_bytes_and_keeps_floats(pixels):
    floats = scale(jnp.asarray(pixels))
    assert floats.dtype == jnp.float32
    np.testing.assert_allclose(floats, pixels / 255, rtol=1e-6)
    assert scale(floats) is floats


COLORS = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3), np.uint8)


def test_images_in_any_form(tmp_path):
    shape = (6, 4, 3)
    first, second = map(Image.fromarray, COLORS)
    first.save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", COLORS / 255)
    for one in (first, COLORS[0], tmp_path / "a.png", str(tmp_path / "a.png"), [COLORS[0]]):
        np.testing.assert_array_equal(take_images(one, to(shape)), COLORS[:1])
    for both in ([first, second], (first, COLORS[1]), [tmp_path / "a.png", second], [*COLORS]):
        np.testing.assert_array_equal(take_images(both, to(shape)), COLORS)
    several = take_images([first, tmp_path / "b.npy", COLORS[1] / 255], to(shape))
    assert several.dtype == np.float32
    np.testing.assert_allclose(several, COLORS[[0, 0, 1, 1]] / 255, atol=1e-6)
    other = Image.fromarray(np.repeat(np.repeat(COLORS[0], 2, axis=0), 2, axis=1))
    expected = other.resize((4, 6), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(
        take_images(other, to(shape), resize=True)[0], np.asarray(expected)
    )
    array = take_images([np.asarray(other)], to(shape), resize=True)
    np.testing.assert_array_equal(array[0], np.asarray(expected))


@pytest.mark.parametrize(
    ("data", "resize", "expected"),
    [
        ("photos", "crop", lambda image: ImageOps.fit(image, (4, 6), LANCZOS)),
        ("fashion_mnist", "crop", lambda image: ImageOps.fit(image, (4, 6), LANCZOS)),
        ("photos", "stretch", lambda image: image.resize((4, 6), LANCZOS)),
        ("photos", "none", lambda image: image.resize((4, 6), LANCZOS)),
    ],
)
def test_user_images_are_converted_as_those_of_the_training(data, resize, expected):
    wide = Image.fromarray(COLORS[0]).resize((40, 24))
    config = TrainConfig(data=data, resize=resize)
    taken = take_images(wide, conversion_of(config, (6, 4, 3)), resize=True)
    np.testing.assert_array_equal(taken[0], np.asarray(expected(wide)))


def test_a_large_jpeg_is_decoded_as_for_a_training(tmp_path):
    """At a fraction of its size, which differs from reducing the whole image."""
    trained = conversion_of(TrainConfig(data="photos"), (12, 10, 3))
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    small = Image.fromarray(noise)
    for orientation in (1, 6):
        file = tmp_path / f"{orientation}.jpg"
        exif = Image.Exif()
        exif[0x0112] = orientation
        small.resize((400, 600)).save(file, exif=exif, quality=95)
    for file in tmp_path.glob("*.jpg"):
        expected = trained(files.open_image(file, "x"), "x")
        images = take_images(file, trained, resize=True)
        np.testing.assert_array_equal(images[0], expected)
        with Image.open(file) as image:
            whole = trained(ImageOps.exif_transpose(image), "x")
        assert (whole != expected).any()  # else the test could not fail
        with Image.open(file) as image:  # the user's own, which keeps its size
            before = image.size
            taken = take_images(image, trained, resize=True)
            assert image.size == before
        np.testing.assert_array_equal(taken[0], whole)


def test_the_orientation_of_a_png_may_come_after_its_pixels(tmp_path):
    """A file of the right size as it is stored, and of another one as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(COLORS[0])
    stored.save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    chunk, rest = content[start:end], content[:start] + content[end:]
    late = rest.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(rest[:late] + chunk + rest[late:])
    read = take_images(tmp_path / "a.png", to((6, 4, 3), "crop"), resize=True)
    upright = stored.transpose(Image.Transpose.ROTATE_270)
    assert upright.size == (6, 4)
    expected = ImageOps.fit(upright, (4, 6), LANCZOS)
    np.testing.assert_array_equal(read[0], np.asarray(expected))


def test_a_damaged_image_in_memory_is_refused(tmp_path):
    Image.fromarray(COLORS[0]).resize((400, 600)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    with (
        Image.open(io.BytesIO(content[: len(content) // 2])) as image,
        pytest.raises(UserError, match=r"^the image is not a readable image \(.*truncated"),
    ):
        take_images(image, to((6, 4, 3)), resize=True)
    with pytest.raises(UserError, match=r"image has floats in .2, 2.*divide"):
        take_images(Image.new("F", (9, 9), 2.0), to((6, 4, 3)), resize=True)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (COLORS.transpose(0, 3, 1, 2), r"\[2, 3, 6, 4\], which looks like channels first; convert"),
        (COLORS[0].transpose(2, 0, 1), r"\[3, 6, 4\], which looks like channels first"),
        (np.zeros((2, 3, 32, 32)), "looks like channels first; convert it with"),
        (
            np.zeros((2, 4, 6, 3)),
            r"shape \[2, 4, 6, 3\]; it takes .* \[N, 6, 4, 3\], or .* resize or",
        ),
        (
            Image.new("RGB", (6, 4)),
            "^the image has 4 x 6 pixels .height x width. of mode RGB; pass 6 x 4 pixels of",
        ),
        ([Image.new("RGBA", (4, 6))], "with transparency; pass 6 x 4 pixels of 8-bit color"),
        ([np.zeros((6, 4, 3)), np.zeros((5, 4, 3))], "the images differ in shape"),
        ("nowhere.png", "nowhere.png is not a file that can be read; pass image files"),
    ],
)
def test_images_of_other_forms_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        take_images(images, to((6, 4, 3)))
