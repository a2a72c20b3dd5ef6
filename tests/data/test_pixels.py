"""Pixels of any type and range: what is black and white, frames, and files beyond 8 bits."""

import contextlib
import io
import re
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, PngImagePlugin

import cae_jax
from cae_jax import TrainConfig, UserError, cli, data
from cae_jax.data import files
from cae_jax.data.conversion import Conversion
from cae_jax.data.images import conversion_of, take_images
from cae_jax.data.pixels import Range, Statistics, checked_array
from cae_jax.report.collect import collect
from tests.conftest import DENSE

RNG = np.random.default_rng(0)
TWELVE = RNG.integers(0, 4096, (24, 8, 8), np.uint16)
TWELVE[0, 0, :2] = 0, 4095


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))


def eighths(values, black=0, white=4095):
    """Values as 8 bits, by the definition."""
    return np.rint(np.clip((values - float(black)) / (white - black), 0, 1) * 255).astype(np.uint8)


def config(path, **fields) -> TrainConfig:
    return TrainConfig(data=str(path), batch_size=1, **fields)


def both(path, **fields) -> np.ndarray:
    """Training and test images together, [N, H, W, C]."""
    loaded = data.load(config(path, **fields))
    return np.concatenate([loaded.train, loaded.validation])


def convert(file, name="image", channels=1, **fields):
    image = files.open_image(file, name)
    with image if isinstance(image, Image.Image) else contextlib.nullcontext():
        return Conversion(None, "crop", "auto", channels, **fields)(image, name)


def tiff(values, **options) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        tifffile.imwrite(file, values, **options)
    return file.getvalue()


def packed_tiff(values) -> bytes:
    """A TIFF of 12 bits a pixel, two pixels in three bytes (TIFF 6.0, BitsPerSample)."""
    high, low = values.reshape(-1, 2).astype(np.uint32).T
    pairs = high << 12 | low
    content = np.stack([pairs >> 16, pairs >> 8 & 255, pairs & 255], -1).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags[279] = len(content)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(content)) + content + directory


FILES = {
    "gray.png": lambda: png(TWELVE[0]),
    "gray.tif": lambda: tiff(TWELVE[0], photometric="minisblack"),
    "color.png": lambda: imagecodecs.png_encode(np.stack([TWELVE[0]] * 3, -1)),
    "color.tif": lambda: tiff(np.stack([TWELVE[0]] * 3, -1), photometric="rgb"),
    "planes.tif": lambda: tiff(
        np.stack([TWELVE[0]] * 3), photometric="rgb", planarconfig="separate"
    ),
    "uint32.tif": lambda: tiff(TWELVE[0].astype(np.uint32), photometric="minisblack"),
    "int16.tif": lambda: tiff(TWELVE[0].astype(np.int16), photometric="minisblack"),
    "float.tif": lambda: tiff(TWELVE[0].astype(np.float32), photometric="minisblack"),
    "double.tif": lambda: tiff(TWELVE[0].astype(np.float64), photometric="minisblack"),
    "half.tif": lambda: tiff((TWELVE[0] // 4).astype(np.float16), photometric="minisblack"),
    "rgb_float.tif": lambda: tiff(np.stack([TWELVE[0]] * 3, -1).astype("f4"), photometric="rgb"),
    "a.npy": lambda: npy(TWELVE[0]),
}


def png(values, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", **options)
    return file.getvalue()


def npy(values) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("name", FILES)
def test_white_is_what_the_user_says(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name]())
    white = 1023 if name == "half.tif" else 4095  # a half holds whole numbers up to 2048
    values = TWELVE[0] // 4 if white == 1023 else TWELVE[0]
    pixels = convert(path, range=Range(0, white))
    np.testing.assert_allclose(pixels[..., 0].astype(int), eighths(values, 0, white), atol=1)
    # As images of a run are taken, and by its Autoencoder.
    run = TrainConfig(white=white, image_shape=(8, 8, 3), features=(8,))
    taken = take_images(path, conversion_of(run, (8, 8, 3)), resize=True)
    taken = taken * 255 if taken.dtype == np.float32 else taken
    np.testing.assert_allclose(taken[0, ..., 1], pixels[..., 0], atol=1)
    if name != "a.npy":  # as in a parquet file
        np.testing.assert_array_equal(convert(path.read_bytes(), range=Range(0, white)), pixels)


def test_a_file_may_say_what_is_white():
    np.testing.assert_array_equal(convert(packed_tiff(TWELVE[0]))[..., 0], eighths(TWELVE[0]))
    sixteen = TWELVE[0] * 16
    for options, black, white in (({}, 0, 4095 * 16), ({"white": 61440.0}, 0, 61440)):
        content = tiff(sixteen, photometric="miniswhite")
        pixels = convert(content, range=Range(**options))
        expected = 255 - eighths(sixteen, black, 65535 if not options else white)
        np.testing.assert_array_equal(pixels[..., 0], expected)


@pytest.mark.parametrize(
    ("values", "levels", "expected"),
    [
        (np.array([-1024, 0, 3071], np.int16), (-1024, 3071), [0, 64, 255]),
        (np.array([32768, 34816, 36863], np.uint16), (32768, 36863), [0, 128, 255]),
        (np.array([0, 1], np.uint8), (0, 1), [0, 255]),
        (np.array([0, 100, 255], np.uint8), (0, 4095), [0, 100, 255]),  # has another white
        (np.array([0, 5, 10], np.int64), (10, 0), [255, 128, 0]),
        (np.array([False, True]), (0, 9), [0, 255]),
        (np.array([-3, 3, 4096], np.float64), (0, 4095), [0, 3 / 4095, 1]),
        (np.array([0, 32768, 65535], np.uint16), (32768, None), [0, 0, 255]),
    ],
)
def test_arrays_by_black_and_white(values, levels, expected):
    found = checked_array(values, "x", Range(*levels))
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert found.dtype == (np.float32 if values.dtype.kind == "f" else np.uint8)


def test_alpha_keeps_its_own_white():
    rgba = np.array([[[0, 2048, 4095, 65535]]], np.uint16)
    assert checked_array(rgba, "x", Range(0, 4095)).tolist() == [[[0, 128, 255, 255]]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 2), np.int16), "x is of type int16; images take"),
        (np.zeros((2, 2), np.uint32), "x is of type uint32; images take"),
        (np.array([[0, 1.0000001]], np.float32), r"floats in \[0, 1\.0000001\]; .*divide"),
        (np.array([[-1, 1.0]]), r"floats in \[-1, 1\]; .*shift and scale"),
        (np.zeros((2, 2), complex), "x is of type complex128; images take"),
    ],
)
def test_what_has_no_white_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        checked_array(values, "x")


def test_white_is_found_in_the_training_images(tmp_path):
    values = TWELVE.astype(np.int32) - 1000
    np.save(tmp_path / "a.npy", values)
    loaded = data.load(config(tmp_path / "a.npy", white="auto"))
    # By the same split, without a conversion: the positions of the training images.
    np.save(
        tmp_path / "index.npy",
        np.arange(24, dtype=np.uint8)[:, None, None] + np.zeros((8, 8), np.uint8),
    )
    train = data.load(config(tmp_path / "index.npy")).train[:, 0, 0, 0]
    low, high = values[train].min(), values[train].max()
    assert loaded.levels == (low, high)
    np.testing.assert_array_equal(loaded.train[..., 0], eighths(values[train], low, high))
    arrays = data.of_arrays(config("arrays", white="auto"), (values[train], values[:2]))
    np.testing.assert_array_equal(arrays.train, loaded.train)


@pytest.mark.parametrize("scale", [1, 4, 16])
def test_dark_images_are_told_with_a_way_out(tmp_path, caplog, scale):
    np.save(tmp_path / "a.npy", TWELVE // 4 * scale)
    pixels = both(tmp_path / "a.npy")
    text = caplog.text
    assert f"values {pixels.min()} to {pixels.max()}, mean {pixels.mean():.1f} of 255" in text
    assert ("--white auto" in text) == (scale < 16)


def test_what_is_doubted():
    for least, most, doubt in (
        (0, 0, "black"),
        (0, 63, "dark"),
        (128, 143, "of little contrast"),
        (0, 64, ""),
        (9, 255, ""),
    ):
        statistics = Statistics()
        statistics.add(np.array([[[least], [most]]], np.uint8))
        assert (f"are {doubt} (" in statistics.doubt) if doubt else not statistics.doubt


def test_arrays_of_0_and_1_are_refused():
    images = np.ones((4, 8, 8), np.uint8)
    with pytest.raises(UserError, match=r"`images` has no pixel above 1.*pass `white=1`"):
        data.of_arrays(config("arrays"), (images, images))
    assert data.of_arrays(config("arrays", white=1), (images, images)).train.min() == 255


@pytest.mark.slow
def test_a_run_on_12_bits_takes_them_everywhere(tmp_path, caplog):
    """Its validation, evaluation, report and reconstruction are of the same pixels."""
    for i, values in enumerate(TWELVE):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{i}.png").write_bytes(png(values))
    train = cae_jax.TrainConfig(
        **{
            **vars(DENSE),
            "data": str(tmp_path / "images"),
            "white": "auto",
            "batch_size": 4,
            "train_examples": None,
            "test_examples": None,
            "epochs": 1,
        }
    )
    result = cae_jax.fit(train, tmp_path / "run")
    found = result.autoencoder.config.levels
    assert found is not None
    assert found[0] < 10
    assert found[1] > 4085
    stored = data.load(result.autoencoder.config)
    loaded = cae_jax.load(tmp_path / "run")
    np.testing.assert_array_equal(
        loaded.reconstruct(tmp_path / "images" / "0.png"), loaded.reconstruct(TWELVE[:1])
    )
    pixels = eighths(TWELVE[:1], *found)[..., None]
    assert any((image == pixels[0]).all() for image in (*stored.train, *stored.validation))
    np.testing.assert_array_equal(
        loaded.reconstruct(TWELVE[:1]), loaded.of_pixels.reconstruct(pixels)
    )
    cli.main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "a.json")])
    row = result.history[-1]
    assert f"{row.val_psnr:.4f}"[:5] in (tmp_path / "a.json").read_text()
    [shown] = collect([tmp_path / "run"])["runs"]
    assert shown["config"]["white"] == "auto"
    assert list(shown["config"]["levels"]) == list(found)


# Frames.


def pages(folder, suffix, count=5):
    """A file of several frames, each of one gray value, and these values."""
    grays = [Image.new("L", (8, 8), 40 * (i + 1)) for i in range(count)]
    options = {".webp": {"lossless": True}}.get(suffix, {})
    grays = [each.convert("RGB") for each in grays] if suffix == ".webp" else grays
    grays[0].save(folder / f"pages{suffix}", save_all=True, append_images=grays[1:], **options)
    return [40 * (i + 1) for i in range(count)]


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".webp", ".png"])
def test_frames_are_counted_or_taken(tmp_path, suffix, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    values = pages(folder, suffix)
    for i in range(9):
        Image.new("L", (8, 8), 250).save(folder / f"{i}.png")
    first = both(folder, split=0.5, channels=1)[:, 0, 0, 0]
    assert sorted(first) == [40, *[250] * 9]
    assert "left out: 4 further frames" in caplog.text
    caplog.clear()
    taken = both(folder, split=0.5, channels=1, frames="all")[:, 0, 0, 0]
    np.testing.assert_allclose(sorted(taken), [*values, *[250] * 9], atol=1)
    assert "left out" not in caplog.text
    run = TrainConfig(frames="all")
    images = take_images(folder / f"pages{suffix}", conversion_of(run, (8, 8, 1)), resize=True)
    np.testing.assert_allclose(images[:, 0, 0, 0], values, atol=1)


def test_smaller_versions_of_a_page_are_no_frames(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.full((16, 16), 9, np.uint8), photometric="minisblack")
        file.write(np.full((8, 8), 9, np.uint8), photometric="minisblack", subfiletype=1)
    with files.open_image(tmp_path / "a.tif", "a.tif") as image:
        assert [frame.size for frame in files.frames(image, "all", "a.tif")] == [(16, 16)]


# Intact files that were refused, and other formats.


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


@pytest.mark.parametrize("kind", ["iTXt", "zTXt", "iCCP"])
@pytest.mark.parametrize("behind", [False, True])
def test_long_text_in_a_png(kind, behind):
    text = b"x" * 3_000_000
    content = {
        "iTXt": b"a\0\1\0\0\0" + zlib.compress(text),
        "zTXt": b"a\0\0" + zlib.compress(text),
        "iCCP": b"a\0\0" + zlib.compress(text),
    }[kind]
    plain = png(TWELVE[0].astype(np.uint8))
    at = plain.index(b"IEND") - 4 if behind else plain.index(b"IDAT") - 4
    longer = plain[:at] + chunk(kind.encode(), content) + plain[at:]
    before = PngImagePlugin.MAX_TEXT_CHUNK, Image.MAX_IMAGE_PIXELS
    pixels = convert(longer)
    np.testing.assert_array_equal(pixels[..., 0], TWELVE[0].astype(np.uint8))
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, Image.MAX_IMAGE_PIXELS)


@pytest.mark.slow
def test_a_large_photograph_decodes_at_an_eighth(tmp_path):
    """200 megapixels, which Pillow takes for a bomb."""
    path = tmp_path / "a.jpg"
    Image.new("L", (16_384, 12_288), 90).save(path, quality=50)
    to = Conversion((48, 64), "crop", "auto", 1)
    with files.open_image(path, "a.jpg") as image:
        pixels = to(image, "a.jpg")
    assert pixels.shape == (48, 64, 1)
    assert np.ptp(pixels) <= 1
    with pytest.raises(UserError, match=r"12288 x 16384 pixels in \d+ b.*max_pixels=201326592"):
        convert(path)


def test_what_a_file_holds_bears_out_what_it_claims(monkeypatch):
    noisy = png(RNG.integers(0, 256, (100, 100), np.uint8))
    to = Conversion(None, "crop", "auto", 1, max_pixels=99)
    assert to(files.open_image(noisy, "noisy"), "noisy").shape == (100, 100, 1)
    with pytest.raises(UserError, match=r"flat claims 100 x 100 pixels in \d+ bytes"):
        to(files.open_image(png(np.zeros((100, 100), np.uint8)), "flat"), "flat")


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000", "HEIF"])
def test_further_formats(tmp_path, format):
    if format != "HEIF" and format not in files.FORMATS:
        pytest.skip(f"Pillow lacks {format}")
    image = Image.fromarray(
        np.kron(RNG.integers(0, 256, (2, 2, 3)), np.ones((16, 16, 1))).astype("u1")
    )
    suffix = {"AVIF": "avif", "JPEG2000": "jp2", "HEIF": "heic"}[format]
    path = tmp_path / f"a.{suffix}"
    if format == "HEIF":
        pillow_heif.from_pillow(image).save(path, quality=-1)
    else:
        image.save(path, **({"quality": 100} if format == "AVIF" else {}))
    pixels = take_images(path, Conversion((32, 32), "none", "auto", 3))[0]
    assert np.abs(pixels.astype(int) - np.asarray(image)).mean() < 4


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(UserError, match=r"TIFF of this type, which takes tifffile; pip install"):
        files.open_image(tiff(TWELVE[0].astype(np.float16), photometric="minisblack"), "half.tif")


def test_premultiplied_gray(tmp_path):
    content = tiff(
        np.dstack([TWELVE[0] % 100, np.full((8, 8), 200)]).astype(np.uint8),
        photometric="minisblack",
        extrasamples=["assocalpha"],
    )
    pixels = convert(content, channels=4)
    assert (pixels[..., 3] == 200).all()
    straight = np.clip((TWELVE[0] % 100) * 255.0 / 200, 0, 255)
    np.testing.assert_allclose(pixels[..., 0], straight, atol=1)


def test_other_numbers_of_channels_are_refused_by_name(tmp_path):
    (tmp_path / "five").mkdir()
    content = tiff(np.zeros((8, 8, 5), np.uint16), photometric="minisblack", planarconfig="contig")
    for i in range(8):
        (tmp_path / "five" / f"{i}.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"shape \[1, 8, 8, 5\]; images take .*1, 3 or 4 channels"):
        data.load(config(tmp_path / "five"))


def test_a_folder_of_arrays(tmp_path):
    (tmp_path / "arrays").mkdir()
    for i, image in enumerate(TWELVE):
        np.save(tmp_path / "arrays" / f"{i}.npy", image)
    found = both(tmp_path / "arrays", white=4095)[..., 0]
    expected = eighths(TWELVE)
    assert sorted(map(bytes, found)) == sorted(map(bytes, expected))
    np.save(tmp_path / "arrays" / "all.npy", TWELVE)
    with pytest.raises(UserError, match=r"all\.npy has shape \[24, 8, 8\], .*the file itself"):
        data.load(config(tmp_path / "arrays"))


@pytest.mark.parametrize(("suffix", "form"), [(".zip", "zip"), (".tar.gz", "gztar")])
def test_the_advice_for_archives_works(tmp_path, suffix, form):
    folder = tmp_path / "a b" / "photos"
    folder.mkdir(parents=True)
    for i in range(20):
        (folder / f"{i}.png").write_bytes(png(RNG.integers(0, 256, (8, 8), np.uint8)))
    archive = shutil.make_archive(str(tmp_path / "a b" / "my set"), form, folder)
    with pytest.raises(UserError, match="is the archive") as caught:
        data.load(config(archive))
    command = re.search("`(mkdir.*)`", str(caught.value))[1].replace("python", sys.executable)
    subprocess.run(command, shell=True, check=True)
    given = re.search("and give (.*)$", str(caught.value))[1]
    assert len(both(given)) == 20


def test_what_datasets_saves_to_disk(tmp_path):
    (tmp_path / "data-00000-of-00001.arrow").touch()
    with pytest.raises(UserError, match=r"\.arrow files.*load_from_disk.*to_parquet"):
        data.load(config(tmp_path))


# Twice, not at all, or for others.


def test_white_is_applied_once_with_and_without_resize(tmp_path):
    values = np.array([[0, 50, 100, 200]] * 4, np.uint8)
    (tmp_path / "a.png").write_bytes(png(values))
    (tmp_path / "a.tif").write_bytes(
        tiff((values / 250).astype(np.float32), photometric="minisblack")
    )
    for name, white in (("a.png", 200), ("a.tif", 0.8)):
        to = conversion_of(TrainConfig(white=white), (4, 4, 1))
        for resize in (False, True):
            pixels = take_images(tmp_path / name, to, resize=resize)
            np.testing.assert_array_equal(pixels[0, :, :, 0], eighths(values, 0, 200))


def test_colors_of_16_bits_in_memory(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(FILES["color.png"]())
    to = conversion_of(TrainConfig(white=4095), (8, 8, 3))
    with Image.open(path) as image:
        np.testing.assert_array_equal(take_images(image, to), take_images(path, to))
        assert np.asarray(image).max() == 15  # still what Pillow makes of it


@pytest.mark.parametrize("suffix", ["bmp", "tif", "png"])
def test_8_bits_are_not_taken_for_16(suffix, tmp_path):
    """Rows of 168 or 216 bytes stand among the arguments of Pillow's decoders."""
    image = Image.fromarray(RNG.integers(0, 256, (8, 56 if suffix == "bmp" else 72, 3), np.uint8))
    image.save(tmp_path / f"a.{suffix}")
    pixels = convert(tmp_path / f"a.{suffix}", channels=3, range=Range(0, 4095))
    np.testing.assert_array_equal(pixels, np.asarray(image))


def test_a_pgm_names_its_white():
    header = b"P5 8 8 4095\n"
    content = header + TWELVE[0].astype(">u2").tobytes()
    np.testing.assert_array_equal(convert(content)[..., 0], eighths(TWELVE[0]))
    np.testing.assert_allclose(
        convert(content, range=Range(0, 1000))[..., 0].astype(int),
        eighths(TWELVE[0], 0, 1000),
        atol=1,
    )
    color = b"P6 8 8 4095\n" + np.repeat(TWELVE[0], 3).astype(">u2").tobytes()
    assert convert(color, channels=3).max() == 255
    with pytest.raises(UserError, match="colors of 16 bits, of which Pillow reads 8; save it"):
        convert(color, range=Range(0, 1000))


def test_black_and_white_differ():
    for levels in (Range(7, 7), Range(300)):
        with pytest.raises(UserError, match=r"x has black at \d+ and white at"):
            checked_array(np.full((4, 4), 0.5), "x", levels)
    with pytest.raises(UserError, match="black at 7 and white at 7"):
        data.of_arrays(config("arrays", white="auto"), (np.full((4, 8, 8), 7),) * 2)


@pytest.mark.parametrize("suffix", [".gif", ".tif"])
def test_a_damaged_frame_matters_only_if_it_is_taken(tmp_path, suffix):
    folder = tmp_path / "images"
    folder.mkdir()
    pages(folder, suffix)
    path = folder / f"pages{suffix}"
    path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 3])
    for i in range(9):
        Image.new("L", (8, 8), 250).save(folder / f"{i}.png")
    assert len(both(folder, channels=1)) == 10
    with pytest.raises(UserError, match=f"pages{suffix} is not a readable image"):
        both(folder, channels=1, frames="all")


def test_pillows_bounds_are_restored_after_threads(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(TWELVE[0].astype(np.uint8)))
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    with ThreadPoolExecutor(6) as executor:
        list(executor.map(lambda _: convert(path), range(200)))
    assert before == (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK)
