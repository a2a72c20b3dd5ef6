"""Brings any image to uint8 pixels of one size and number of channels, as a config says."""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cae_jax.config import LEAST_SIDE, MAX_PIXELS, Background, Shape, TrainConfig
from cae_jax.errors import UserError

# The file formats that are read, as Pillow calls them; PPM stands for PGM and PBM, too.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# What the names of their files end in.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".pgm", ".ppm", ".pbm", ".pnm"),
)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 exchange height and width
_TIFF_SIZE = (0x0100, 0x0101)  # the tags of width and height, as they are stored
_GRAY_MODES = {"1", "L", "LA", "La", "I", "F"}


class UnreadableError(UserError):
    """A file that is no intact image; left out where a config skips such files."""

    def __init__(self, name: str, problem: str, advice: str = "save it again") -> None:
        self.problem = problem
        super().__init__(
            f"{name} is no readable image ({problem}); {advice}, remove it, or pass "
            "`skip_unreadable=True`"
        )


class Conversion(NamedTuple):
    """What images are brought to.

    Attributes:
        size: height and width; None leaves them.
        resize, background: see `TrainConfig`.
        channels: 1, 3 or 4.
    """

    size: tuple[int, int] | None
    resize: str
    background: Background
    channels: int

    def __call__(self, image: Image.Image | np.ndarray, name: str) -> np.ndarray:
        """Converts one image.

        Args:
            image: of any size and mode; an array as `from_array` takes it.
            name: how an error names the image.

        Returns:
            uint8 ``[height, width, channels]``.

        Raises:
            UnreadableError: damaged, or too large.
            UserError: another size than `size`, where `resize` is ``"none"``.
        """
        if isinstance(image, np.ndarray):
            pixels = eight_bit_array(image, name)
            if pixels.shape[-1] == self.channels and self.size in (None, pixels.shape[:2]):
                return pixels
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        with _reading(name):
            if self.size is not None and self.resize != "none":
                # A JPEG decodes at a fraction of its size; twice what is needed stays sharp.
                image.draft(None, (2 * max(self.size), 2 * max(self.size)))
            image = eight_bits(upright(image))
            border = background_of(image, self.background)
            mode = MODES[self.channels]
            image = image.convert(mode) if mode == "RGBA" else opaque(image, border).convert(mode)
        return self._sized(image, border, name)

    def _sized(self, image: Image.Image, border: str, name: str) -> np.ndarray:
        """The pixels of an image that has the mode, in the size."""
        if self.size is not None and (image.height, image.width) != self.size:
            height, width = self.size
            if self.resize == "none":
                raise UserError(
                    f"{name} has {image.height} x {image.width} pixels, and `image_size` is "
                    f"{height} x {width}; choose a `resize` of fit, crop or stretch"
                )
            image = _resized(image, (width, height), self.resize, border)
        return np.asarray(image).reshape(image.height, image.width, self.channels)


def of_config(config: TrainConfig, shape: Shape) -> Conversion:
    """The conversion that a config describes to images of a height, width and channels."""
    return Conversion(shape[:2], config.resize, config.background, shape[2])


def open_image(file: Path | bytes, name: str) -> Image.Image:
    """Opens an image, of which only the header is read.

    Raises:
        UnreadableError: no image of the `FORMATS`, or one of more than `MAX_PIXELS`.
    """
    with _reading(name):
        source = io.BytesIO(file) if isinstance(file, bytes) else file
        image: Any = Image.open(source, formats=FORMATS)
        if image.format == "TIFF":
            image.filename = ""  # Pillow 13 maps the file to memory with its sides exchanged
        if image.width * image.height > MAX_PIXELS:  # a PNG of a few kB can announce gigabytes
            image.close()
            raise ValueError(
                f"{image.height} x {image.width} pixels are more than the {MAX_PIXELS} allowed"
            )
        return image


def header(image: Image.Image | np.ndarray, name: str) -> tuple[tuple[int, int], bool]:
    """Height and width as an image is seen, and whether it is gray; decodes palettes alone.

    Raises:
        UnreadableError: damaged where that shows.
    """
    with _reading(name):
        return _header(image)


def _header(image: Image.Image | np.ndarray) -> tuple[tuple[int, int], bool]:
    if isinstance(image, np.ndarray):
        return image.shape[:2], image.ndim == 2 or image.shape[2] == 1
    height, width, orientation = image.height, image.width, None
    # Pillow would decode a whole PNG to look for EXIF data behind the pixels.
    if image.format != "PNG" or "exif" in image.info:
        with contextlib.suppress(Exception):  # damaged metadata say nothing about the pixels
            orientation = image.getexif().get(_ORIENTATION)
            if image.format == "TIFF":  # whose size newer versions of Pillow exchange already
                width, height = (image.getexif()[tag] for tag in _TIFF_SIZE)
    size = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    return size, _is_gray(image)


def _is_gray(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None:
        colors = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return bool((colors == colors[:, :1]).all())
    return image.mode in _GRAY_MODES or image.mode.startswith("I;")


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Names the image in what Pillow raises, which depends on the damage."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError(name, f"it begins as none of {', '.join(FORMATS)}") from error
    except PermissionError as error:
        raise UnreadableError(name, "permission denied", "grant read permission") from error
    except Exception as error:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableError(name, problem) from error


def upright(image: Image.Image) -> Image.Image:
    """Decodes an image, of several frames the first, and turns it by its EXIF orientation."""
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata say nothing about the pixels
        return ImageOps.exif_transpose(image)
    return image


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent color."""
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


def eight_bits(image: Image.Image) -> Image.Image:
    """Divides a 16-bit gray image by 257, so that white stays white; others stay as they are.

    Floats in [0, 1] are multiplied by 255.

    Raises:
        ValueError: integers of more than 16 bits, or floats outside [0, 1].
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    white = 1 if image.mode == "F" else 65535
    low, high = values.min(initial=0), values.max(initial=0)
    if not (low >= 0 and high <= white):
        raise ValueError(f"its values lie in [{low:g}, {high:g}], not in [0, {white}]")
    gray = Image.fromarray(np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8))
    if "transparency" in image.info:
        visible = values != image.info["transparency"]
        gray.putalpha(Image.fromarray(visible.astype(np.uint8) * np.uint8(255)))
    return gray


def background_of(image: Image.Image, background: Background) -> str:
    """What shows behind an image: ``"auto"`` takes white behind dark transparent ones."""
    if background != "auto":
        return background
    if not is_transparent(image):
        return "black"
    image = image.convert("RGBA")
    weights = np.asarray(image.getchannel("A"), np.float64)
    light = np.asarray(image.convert("RGB").convert("L")) / 255 - 0.5
    return "white" if (light * weights).sum() < 0 else "black"


def opaque(image: Image.Image, background: str) -> Image.Image:
    """Composes a transparent image over black or white; others stay as they are."""
    if not is_transparent(image):
        return image
    image = image.convert("RGBA")
    colors = image.convert("RGB")
    return Image.composite(colors, Image.new("RGB", image.size, background), image.getchannel("A"))


def _resized(image: Image.Image, size: tuple[int, int], resize: str, border: str) -> Image.Image:
    """Resizes to a width and height by Lanczos's filter, which averages where it reduces."""
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
    fitted.paste(
        image.resize(inner, method), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
    )
    return fitted


def eight_bit_array(values: np.ndarray, name: str) -> np.ndarray:
    """An image as an array, ``[height, width]`` or ``[height, width, 1, 3 or 4]``, in uint8.

    Args:
        values: uint8, uint16 (divided by 257), bool (True is white) or floats in [0, 1].
        name: how an error names the image.

    Returns:
        uint8 ``[height, width, channels]``.

    Raises:
        UserError: another type, or values outside [0, 1] or not finite.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # of either byte order
        values = np.rint(values / 257).astype(np.uint8)
    elif values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    elif np.issubdtype(values.dtype, np.floating):
        low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
        if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= 1):
            raise UserError(
                f"{name} has floats in [{low:g}, {high:g}]; images take finite ones in [0, 1]: "
                f"{float_advice(low)}, or save uint8"
            )
        values = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise UserError(
            f"{name} is of type {values.dtype}; images take uint8, uint16, bool, or floats in "
            "[0, 1]: divide it by the value of white"
        )
    return values[..., None] if values.ndim == 2 else values


def float_advice(low: float) -> str:
    """What to do with floats outside [0, 1], or not finite, of which the least is `low`."""
    if not math.isfinite(low):
        return "replace those that are not finite"
    return "divide them by the value of white" if low >= 0 else "shift and scale them"


def check_shape(shape: tuple[int, ...], name: str) -> Shape:
    """The height, width and channels of an array ``[N, H, W]`` or ``[N, H, W, C]``.

    Raises:
        UserError: another rank, channels first, or no images; names the file.
    """
    if len(shape) == 4 and shape[1] in MODES and shape[3] not in MODES:
        raise UserError(
            f"{name} has shape {list(shape)}, which looks like channels first; save it as "
            "[N, H, W, C], with numpy.moveaxis(images, 1, -1)"
        )
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in MODES):
        flat = "; reshape flattened images" if len(shape) == 2 else ""
        raise UserError(
            f"{name} has shape {list(shape)}; images take [N, H, W] or [N, H, W, C] with 1, 3 or "
            f"4 channels C{flat}"
        )
    height, width, channels = shape[1:] if len(shape) == 4 else (*shape[1:], 1)
    if not shape[0]:
        raise UserError(f"{name} has shape {list(shape)}, which holds no images; give others")
    return height, width, channels


def check_size(size: tuple[int, int], name: str) -> None:
    """Refuses images smaller than the networks take, or of too many pixels.

    Raises:
        UserError: names the image.
    """
    if min(size) < LEAST_SIDE or math.prod(size) > MAX_PIXELS:
        raise UserError(
            f"{name} has {size[0]} x {size[1]} pixels; images take at least {LEAST_SIDE} x "
            f"{LEAST_SIDE} and at most {MAX_PIXELS} in all: pass `image_size=64`"
        )
