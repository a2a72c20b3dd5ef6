"""Converts images of any mode to uint8 with the configured size and channels."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cae_jax.config import MAX_PIXELS, Background, Shape
from cae_jax.data.pixels import MODES, check_shape, eight_bit_array
from cae_jax.errors import UserError, naming

# The file formats that are read, by Pillow's names; PPM includes PGM and PBM.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".pgm", ".ppm", ".pbm", ".pnm"),
)
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 exchange height and width
_TIFF_SIZE = (0x0100, 0x0101)  # the tags of the stored width and height
_GRAY_MODES = {"1", "L", "LA", "La", "I", "F"}


class UnreadableError(UserError):
    """A file is not an intact image; left out if the config skips such files."""


class Conversion(NamedTuple):
    """What images are converted to.

    Attributes:
        size: height and width; None keeps them.
        resize, background: see `TrainConfig`.
        channels: 1, 3 or 4.
    """

    size: tuple[int, ...] | None
    resize: str
    background: Background
    channels: int

    @property
    def shape(self) -> Shape:
        """Height, width and channels of the results, where there is a size."""
        assert self.size is not None
        height, width = self.size
        return height, width, self.channels

    def __call__(self, image: Image.Image | np.ndarray, name: str) -> np.ndarray:
        """Converts one image.

        Args:
            image: of any size and mode; an array as of `eight_bit_array`.
            name: how an error names the image.

        Returns:
            uint8 ``[height, width, channels]``.

        Raises:
            UserError: damaged; another size, where `resize` is ``"none"``; an array of another type
                or range.
        """
        if isinstance(image, np.ndarray):
            pixels = eight_bit_array(image, name)
            if pixels.shape[-1] == self.channels and self.size in (None, pixels.shape[:2]):
                return pixels
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        with reading(name):
            if self.size is not None and self.resize != "none":
                # A JPEG decodes at a fraction of its size; twice the target stays sharp.
                image.draft(None, (2 * max(self.size), 2 * max(self.size)))
            mode = MODES[self.channels]
            image, border = _flat(_eight_bits(upright(image)), self.background, mode == "RGBA")
            image = image if image.mode == mode else image.convert(mode)
        if self.size is not None and image.size != self.size[::-1]:
            height, width = self.size
            if self.resize == "none":
                raise UserError(
                    f"{name} has {image.height} x {image.width} pixels, and `image_size` is "
                    f"{height} x {width}",
                    "choose a `resize` of fit, crop or stretch",
                )
            image = _resized(image, (width, height), self.resize, border)
        return np.asarray(image).reshape(image.height, image.width, self.channels)


def open_image(file: Path | bytes | Image.Image, name: str) -> Image.Image:
    """Opens an image without decoding it.

    Args:
        file: path or content of a file; or an image in memory, which is loaded.
        name: how an error names it.

    Raises:
        UnreadableError: not an image of the `FORMATS`, or one of more than `MAX_PIXELS`.
    """
    with reading(name):
        image: Any = file
        if not isinstance(file, Image.Image):
            image = _opened(io.BytesIO(file) if isinstance(file, bytes) else file)
        if image.width * image.height > MAX_PIXELS:  # a PNG of a few kB can announce gigabytes
            if image is not file:
                image.close()
            raise ValueError(
                f"{image.height} x {image.width} pixels are more than the {MAX_PIXELS} allowed"
            )
        if image is file:
            image.load()  # a draft would shrink the caller's JPEG
        return image


def _opened(source: Path | io.BytesIO) -> Image.Image:
    try:
        image: Any = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it begins as none of {', '.join(FORMATS)}") from None
    if image.format == "TIFF":
        image.filename = ""  # Pillow 13 maps the file to memory with its sides exchanged
    return image


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what Pillow raises into an `UnreadableError`; its warnings would add lines."""
    with (
        warnings.catch_warnings(action="ignore"),
        naming(name, "a readable image", "save it again", raises=UnreadableError),
    ):
        yield


def header(image: Image.Image | np.ndarray, name: str) -> tuple[tuple[int, int], int]:
    """Displayed height and width of an image, and channels that show its colors: 1 or 3.

    Decodes palettes only.

    Raises:
        UnreadableError: damaged where that shows.
        UserError: an array of another shape.
    """
    if isinstance(image, np.ndarray):
        height, width, channels = check_shape((1, *image.shape), name)
        return (height, width), 1 if channels == 1 else 3
    with reading(name):
        height, width, orientation = image.height, image.width, None
        # Pillow would decode a whole PNG to look for EXIF data behind the pixels.
        if image.format != "PNG" or "exif" in image.info:
            with contextlib.suppress(Exception):  # damaged metadata leave the pixels intact
                orientation = image.getexif().get(_ORIENTATION)
                if image.format == "TIFF":  # newer versions of Pillow exchange its size already
                    width, height = (image.getexif()[tag] for tag in _TIFF_SIZE)
        size = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
        return size, 1 if _is_gray(image) else 3


def _is_gray(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None:
        colors = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return bool((colors == colors[:, :1]).all())
    return image.mode in _GRAY_MODES or image.mode.startswith("I;")


def upright(image: Image.Image) -> Image.Image:
    """Decodes an image, the first of several frames, and applies its EXIF orientation."""
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata leave the pixels intact
        return ImageOps.exif_transpose(image)
    return image


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent color."""
    return "transparency" in image.info or not {"A", "a"}.isdisjoint(image.getbands())


def _eight_bits(image: Image.Image) -> Image.Image:
    """Divides 16-bit grays by 257 and multiplies floats by 255; other images stay."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    white = 1 if image.mode == "F" else 65535
    low, high = values.min(initial=0), values.max(initial=0)
    if not (low >= 0 and high <= white):
        raise ValueError(f"its values lie in [{low:g}, {high:g}], not in [0, {white}]")
    if high == 1 and white != 1:
        raise ValueError(f"its values go up to 1, which is black for {values.dtype}")
    gray = Image.fromarray(np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8))
    if "transparency" in image.info:
        visible = values != image.info["transparency"]
        gray.putalpha(Image.fromarray(visible.astype(np.uint8) * np.uint8(255)))
    return gray


def _flat(image: Image.Image, background: Background, keep: bool) -> tuple[Image.Image, str]:
    """Composes a transparent image over its background, unless it keeps its transparency.

    Returns:
        the image, and its background: ``"auto"`` is white behind dark images, else black.
    """
    if not is_transparent(image):
        return image, "white" if background == "white" else "black"
    image = image.convert("RGBA")
    colors, alpha = image.convert("RGB"), image.getchannel("A")
    if background == "auto":
        light = np.asarray(colors.convert("L")) / 255 - 0.5
        background = "white" if (light * np.asarray(alpha, np.float64)).sum() < 0 else "black"
    if not keep:
        image = Image.composite(colors, Image.new("RGB", image.size, background), alpha)
    return image, background


def _resized(image: Image.Image, size: tuple[int, int], resize: str, border: str) -> Image.Image:
    """Resizes to a width and height with Lanczos's filter, which averages where it reduces."""
    method = Image.Resampling.LANCZOS
    if resize == "stretch":
        return image.resize(size, method)
    if resize == "crop":
        return ImageOps.fit(image, size, method)
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    white = 255 if border == "white" else 0
    # The border of an image that keeps its transparency is transparent.
    color = {"L": white, "RGB": (white,) * 3, "RGBA": (white,) * 3 + (0,)}[image.mode]
    fitted = Image.new(image.mode, size, color)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    fitted.paste(image.resize(inner, method), (left, top))
    return fitted
