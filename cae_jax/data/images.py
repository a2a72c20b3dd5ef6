"""Reads and writes user images, and converts pixels to what the models take."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cae_jax import atomic
from cae_jax.config import ARRAYS, MAX_PIXELS, Background, Shape, TrainConfig, is_original
from cae_jax.data import conversion
from cae_jax.data.conversion import FORMATS, Conversion, UnreadableError
from cae_jax.data.conversion import MODES as _MODES
from cae_jax.errors import UserError

# Weights of red, green and blue in Pillow's mode L (ITU-R 601-2), which sum to 1 exactly.
_LUMA = np.array([19595, 38470, 7471]) / 65536
# Modes of Pillow that are converted without loss, by the channels.
_EXACT = {1: {"1", "L"}, 3: {"1", "L", "P", "RGB"}}
_EXACT[4] = _EXACT[3] | {"LA", "PA", "RGBA"}
# What the names of files that are read end in.
SUFFIXES = (*conversion.SUFFIXES, ".npy")
_FILES = (str, os.PathLike, Image.Image)


def scale(images: jax.Array) -> jax.Array:
    """Converts pixels to float32 in [0, 1]; uint8 is divided by 255."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def prepare_images(images: np.ndarray, image_shape: Shape) -> np.ndarray:
    """Checks images and converts them to what the models take.

    Args:
        images: uint8, bool (True is white), or floats in [0, 1], ``[N, *image_shape]``; gray ones
            also ``[N, height, width]``; a single one also without N, which then is 1.
        image_shape: expected ``(height, width, channels)``.

    Returns:
        uint8, or float32 in [0, 1], ``[N, *image_shape]``.

    Raises:
        UserError: another shape or type, channels first, values outside [0, 1] or not finite.
    """
    images = np.asarray(images)
    height, width, channels = image_shape
    shape = images.shape
    if shape == image_shape or (channels == 1 and shape == (height, width)):
        images = images[None]
    if channels == 1 and images.shape[1:] == (height, width):
        images = images[..., None]
    if images.shape[1:] != image_shape:
        gray = f"[N, {height}, {width}] or " if channels == 1 else ""
        takes = f"they take {gray}[N, {height}, {width}, {channels}]"
        first = len(shape) >= 3 and shape[-3] in _MODES and shape[-1] not in _MODES
        if first or shape[-3:] == (channels, height, width):
            raise UserError(
                f"images have shape {list(shape)}, which looks like channels first; {takes}: "
                "convert them with numpy.moveaxis(images, -3, -1)"
            )
        raise UserError(
            f"images have shape {list(shape)}; {takes}: resize or crop them to {height} x {width} "
            "pixels"
        )
    return _checked_values(images)


def take_images(
    images: Any,
    image_shape: Shape,
    *,
    resize: bool = False,
    conversion: Conversion | None = None,
) -> np.ndarray:
    """Takes images in any form: an array, a PIL image, the path of a file, or a list of those.

    Args:
        images: an array as `prepare_images` takes it, a PIL image, a path as `read_images` takes
            it, or a list of images, arrays among them of one image each.
        image_shape: expected ``(height, width, channels)``.
        resize, conversion: see `read_images`; arrays are converted as those of a file.

    Returns:
        uint8, or float32 in [0, 1], ``[N, *image_shape]``; a single image has an N of 1.

    Raises:
        UserError: see `prepare_images` and `read_images`.
    """
    options: Any = {"resize": resize, "conversion": conversion}
    size = image_shape[:2]
    if isinstance(images, (list, tuple)) and any(isinstance(x, _FILES) for x in images):
        return joined([take_images(each, image_shape, **options) for each in images])
    if isinstance(images, (str, os.PathLike)):
        return read_images(os.fspath(images), image_shape, **options)
    if isinstance(images, Image.Image):
        try:
            return _resized(_pixels(images, image_shape, resize, "auto", conversion), size)
        except UnreadableError as error:  # whose advice is for a training
            raise UserError(f"not a readable image ({error.problem}); open another") from error
        except UserError as error:
            raise UserError(f"the image: {error}") from error
        except Exception as error:  # loaded only now; the type depends on the damage
            raise UserError(f"not an intact image ({error}); open another") from error
    try:
        array = np.asarray(images)
    except ValueError:
        raise UserError("the images differ in shape; pass them one by one") from None
    if resize:
        return _resized(_as_batch(_checked_values(array), image_shape, resize), size)
    return prepare_images(array, image_shape)


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Images ``[N, ...]`` of all parts: uint8 where all of them are, else float32 in [0, 1]."""
    if len({part.dtype for part in parts}) > 1:
        parts = [np.asarray(part / np.float32(_white(part)), np.float32) for part in parts]
    return np.concatenate(parts)


def of_training(config: TrainConfig, image_shape: Shape) -> Conversion | None:
    """How the images of a training were converted; None where all are taken as they are."""
    if config.data == ARRAYS or is_original(config) or config.resize == "none":
        return None
    return conversion.of_config(config, image_shape)


def _white(images: np.ndarray) -> int:
    return 255 if images.dtype == np.uint8 else 1


def read_images(
    path: str | Path,
    image_shape: Shape,
    *,
    resize: bool = False,
    background: Background = "auto",
    conversion: Conversion | None = None,
) -> np.ndarray:
    """Reads the image or images in a file.

    It is turned upright by its EXIF orientation; of several frames the first one is read. What
    keeps all values is converted always: gray to color, a palette to its colors, 1 bit to 8, and
    opaque images to those with transparency.

    Args:
        path: a PNG, JPEG, WebP, BMP, TIFF or GIF file of 8 bits a channel, or a .npy array of
            uint8, bool (True is white) or floats in [0, 1] with one image or N: ``image_shape``,
            flattened, or gray ones without the last axis.
        image_shape: expected ``(height, width, channels)``.
        resize: convert other sizes (bilinearly), colors, transparency, and files of 16 bits.
        background: what shows behind transparent pixels; ``"auto"`` takes black behind light pixels
            and white behind dark ones, so that the shape shows.
        conversion: that of the training images, by which `resize` converts image files instead.

    Returns:
        uint8, or float32 in [0, 1], ``[N, *image_shape]``.

    Raises:
        UserError: missing or damaged file, other shape, color or type; names the file.
    """
    path = Path(os.path.expanduser(path))  # noqa: PTH111, the method fails on a file ~lock.png
    if not os.path.isfile(path):  # noqa: PTH113 - which raises without permission
        raise UserError(f"{path} is not a file that can be read; pass image files or .npy files")
    try:
        # Warnings of Pillow and NumPy would add lines to that of the error.
        with warnings.catch_warnings(action="ignore"):
            if path.suffix.lower() not in SUFFIXES:
                raise UserError(f"the file type is unknown; files end in {', '.join(SUFFIXES)}")
            if path.suffix.lower() == ".npy":
                images = _as_batch(_checked_values(_read_npy(path)), image_shape, resize)
            else:
                images = _read_file(path, image_shape, resize, background, conversion)
            if images.dtype == np.uint8:
                _check_white(images)
            return _resized(images, image_shape[:2])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes an image with 8 bits a channel, whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        image: ``[height, width, channels]`` in [0, 1], of 1 (gray), 3 (RGB) or 4 (RGBA) channels.

    Raises:
        OSError: the file cannot be written.
    """
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    plane = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    with atomic.replacing(path, durable=False) as temporary:
        Image.fromarray(plane).save(temporary, format="PNG")


def _checked_values(images: np.ndarray) -> np.ndarray:
    """The images as uint8, or as float32 in [0, 1]."""
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images are {images.dtype}; they take uint8, or floats in [0, 1], or bool")
    low, high = (images.min(), images.max()) if images.size else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= 1):
        raise UserError(
            f"float images lie in [{low:g}, {high:g}]; they take finite values in [0, 1]: "
            f"{conversion.float_advice(low)}, or pass uint8"
        )
    return images.astype(np.float32)


def _check_white(pixels: np.ndarray) -> None:
    # Refused, not guessed: such a file is nearly always a mask, but a black image with a little
    # noise looks the same. Arrays in memory pass, where a dark frame must not stop a program.
    if pixels.max(initial=0) == 1:
        raise UserError(
            f"the values are whole numbers up to 1, which is black for {pixels.dtype}; if 1 is "
            "white, save the image as bool in a .npy file, or multiply it by 255"
        )


def _read_file(
    path: Path,
    image_shape: Shape,
    resize: bool,
    background: Background,
    convert: Conversion | None,
) -> np.ndarray:
    """The image uint8 ``[1, height, width, channels]``, with `resize` of any size."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            small = image.width * image.height <= MAX_PIXELS
            if convert and resize and small and conversion.header(image, "")[0] != image_shape[:2]:
                return convert(image, "the image")[None]  # which decodes a JPEG as for the training
            return _pixels(image, image_shape, resize, background, convert)
    except UnreadableError as error:  # whose advice is for a training
        raise UserError(f"not a readable image ({error.problem}); save it again") from error
    except UserError:
        raise
    except PermissionError as error:
        raise UserError("it cannot be read (permission denied); grant it") from error
    except Exception as error:  # the type depends on the damage
        raise UserError(f"not an intact image ({error}); save the image again") from error


def _pixels(
    image: Image.Image,
    image_shape: Shape,
    resize: bool,
    background: Background,
    convert: Conversion | None,
) -> np.ndarray:
    """An image uint8 ``[1, height, width, channels]``, with `resize` of any size."""
    height, width, channels = image_shape
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{image.height} x {image.width} pixels, more than the {MAX_PIXELS} allowed; shrink "
            "the image"
        )
    upright = conversion.upright(image)
    mode, name = _MODES[channels], {1: "gray", 3: "color", 4: "color with transparency"}[channels]
    transparent = conversion.is_transparent(upright)
    plain = _keeps_all(upright, channels) and not (transparent and channels != 4)
    if not resize and (not plain or upright.size != (width, height)):
        seen = " with transparency" if transparent else ""
        raise UserError(
            f"{upright.height} x {upright.width} pixels (height x width) of mode {upright.mode}"
            f"{seen}; pass {height} x {width} pixels of 8-bit {name} (mode {mode}), or "
            "`resize=True` to convert"
        )
    if convert is not None and upright.size != (width, height):
        return convert(upright, "the image")[None]
    plane = _eight_bits(upright)
    if channels != 4:
        plane = conversion.opaque(plane, conversion.background_of(plane, background))
    return np.asarray(plane.convert(mode)).reshape(1, upright.height, upright.width, channels)


def _keeps_all(image: Image.Image, channels: int) -> bool:
    """Whether the colors of an image can be given by 1, 3 or 4 channels of 8 bits."""
    if channels == 1 and image.mode == "P":
        return not np.ptp(np.asarray(image.convert("RGB")), axis=-1).any()
    return image.mode in _EXACT[channels]


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit gray image with 8 bits; refuses one that is black if its white is not 65535."""
    if image.mode.startswith("I"):
        _check_white(np.asarray(image))
    return conversion.eight_bits(image)


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:  # np.load would also open .npz archives
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # the type depends on the damage
        reason = " ".join(str(error).split())[:200]  # NumPy quotes the header
        raise UserError(f"not a readable array ({reason}); save it with numpy.save") from error


def _as_batch(array: np.ndarray, image_shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """Arranges an array as ``[N, height, width, channels]``, with `resize` of any size.

    Raises:
        UserError: no images, or images of another shape, or two readings are possible.
    """
    height, width, channels = image_shape
    shape, pixels = array.shape, math.prod(image_shape)
    planes = (height, width) if channels == 1 else image_shape
    if shape in (image_shape, planes, (pixels,)):
        return array.reshape(1, *image_shape)
    flat = shape[1:] == (pixels,)
    ambiguous = flat and (resize or shape[0] == pixels)  # a square is likely an image
    if shape[1:] in (image_shape, planes) or (flat and not ambiguous):
        return array.reshape(shape[0], *image_shape)
    if not (resize or ambiguous):
        gray = f"[{height}, {width}] or [N, {height}, {width}], " if channels == 1 else ""
        raise UserError(
            f"the array has shape {list(shape)}; it takes {gray}[{height}, {width}, {channels}] or "
            f"[N, {height}, {width}, {channels}], or flattened [{pixels}] or [N, {pixels}]: resize "
            f"or crop the images to {height} x {width} pixels, or pass `resize=True` to convert"
        )
    if ambiguous:
        raise UserError(
            f"the array has shape {list(shape)}: {shape[0]} flattened images or one of "
            f"{shape[0]} x {pixels} pixels; save it as [{shape[0]}, {height}, {width}, {channels}] "
            f"or as [1, {shape[0]}, {pixels}]"
        )
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] > 4):
        array = array[..., None]
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] <= 4):
        array = array[None]
    known = {1, 3, channels}
    if array.ndim != 4 or array.shape[-1] not in known or 0 in array.shape[1:]:
        alpha = " or 4 (RGBA)" if channels == 4 else ""
        raise UserError(
            f"the array has shape {list(shape)}; `resize=True` takes [H, W], [N, H, W], [H, W, C] "
            f"or [N, H, W, C] with 1 (gray) or 3 (RGB){alpha} channels C"
        )
    return _as_channels(array, channels)


def _as_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Converts ``[N, height, width, 1 or 3]`` between gray and RGB, and to opaque RGBA."""
    if images.shape[-1] == channels:
        return images
    if channels == 4:
        alpha = np.full_like(images[..., :1], _white(images))
        return np.concatenate([_as_channels(images, 3), alpha], axis=-1)
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    gray = (images @ _LUMA)[..., None]
    return (np.floor(gray + 0.5) if images.dtype == np.uint8 else gray).astype(images.dtype)


def _resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes ``[N, height, width, channels]`` bilinearly, each channel by itself.

    Colors count with their opacity, so that those of invisible pixels do not show at an edge.
    """
    if images.shape[1:3] == size:
        return images
    if images.shape[-1] == 4:
        colors, alpha = np.split(images.astype(np.float32) / _white(images), [3], axis=-1)
        small = _resized(colors * alpha, size)
        alpha = _resized(alpha, size)
        rgba = np.concatenate([small / np.maximum(alpha, 1e-6), alpha], axis=-1)
        scaled = np.clip(rgba, 0, 1) * np.float32(_white(images))
        return np.rint(scaled).astype(np.uint8) if images.dtype == np.uint8 else scaled
    height, width = size
    resized = np.empty((len(images), height, width, images.shape[-1]), images.dtype)
    for i, channel in np.ndindex(len(images), images.shape[-1]):
        plane = Image.fromarray(images[i, ..., channel])
        resized[i, ..., channel] = plane.resize((width, height), Image.Resampling.BILINEAR)
    return resized
