"""Reads and writes user images, and converts pixels to what the models take."""

import math
import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cae_jax.config import Background
from cae_jax.data import conversion
from cae_jax.data.conversion import MAX_PIXELS
from cae_jax.errors import UserError

# Weights of red, green and blue in Pillow's mode L (ITU-R 601-2), which sum to 1 exactly.
_LUMA = np.array([19595, 38470, 7471]) / 65536
_MODES = {1: "L", 3: "RGB"}


def scale(images: jax.Array) -> jax.Array:
    """Converts pixels to float32 in [0, 1]; uint8 is divided by 255."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def prepare_images(images: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Checks images and converts them to what the models take.

    Args:
        images: uint8, bool (True is white), or floats in [0, 1], ``[N, *image_shape]``; gray ones
            also ``[N, height, width]``.
        image_shape: expected ``(height, width, channels)``.

    Returns:
        uint8, or float32 in [0, 1], ``[N, *image_shape]``.

    Raises:
        UserError: another shape or type, values outside [0, 1] or not finite.
    """
    images = np.asarray(images)
    height, width, channels = image_shape
    shape = images.shape
    if channels == 1 and shape[1:] == (height, width):
        images = images[..., None]
    if images.shape[1:] != image_shape:
        gray = f"[N, {height}, {width}] or " if channels == 1 else ""
        raise UserError(
            f"images have shape {list(shape)}; they take {gray}"
            f"[N, {height}, {width}, {channels}]: resize or crop them to {height} x {width} pixels"
        )
    return _checked_values(images)


def read_images(
    path: str | Path,
    image_shape: tuple[int, int, int],
    *,
    resize: bool = False,
    background: Background = "auto",
) -> np.ndarray:
    """Reads the image or images in a file.

    A PNG is turned upright by its EXIF orientation.

    Args:
        path: an 8-bit gray PNG, or a .npy array of uint8, bool (True is white) or floats in [0, 1]
            with one image or N: ``image_shape``, flattened, or gray ones without the last axis.
        image_shape: expected ``(height, width, channels)``.
        resize: convert other sizes (bilinearly), colors, transparency, and PNG files of 16 bits.
        background: what shows behind transparent pixels; ``"auto"`` takes black behind light pixels
            and white behind dark ones, so that the shape shows.

    Returns:
        uint8, or float32 in [0, 1], ``[N, *image_shape]``.

    Raises:
        UserError: missing or damaged file, other shape, color or type; names the file.
    """
    path = Path(os.path.expanduser(path))  # noqa: PTH111, the method fails on a file ~lock.png
    if not path.is_file():
        raise UserError(f"{path} is not a file; pass PNG or .npy files")
    try:
        # Warnings of Pillow and NumPy would add lines to that of the error.
        with warnings.catch_warnings(action="ignore"):
            if path.suffix.lower() == ".png":
                images = _read_png(path, image_shape, resize, background)
            elif path.suffix.lower() == ".npy":
                images = _as_batch(_checked_values(_read_npy(path)), image_shape, resize)
            else:
                raise UserError("the file type is unknown; files end in .png or .npy")
            if images.dtype == np.uint8:
                _check_white(images)
            return _resized(images, image_shape[:2])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes a gray image ``[height, width, 1]`` in [0, 1] with 8 bits per pixel."""
    pixels = np.rint(np.clip(image[..., 0], 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


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
            "divide them by the value of white, or pass uint8"
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


def _read_png(
    path: Path, image_shape: tuple[int, int, int], resize: bool, background: Background
) -> np.ndarray:
    """The image uint8 ``[1, height, width, channels]``, with `resize` of any size."""
    height, width, channels = image_shape
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = f"{image.width} x {image.height} pixels"
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{found} are more than the {MAX_PIXELS} allowed; shrink the image")
            upright = conversion.upright(image)
            mode, name = _MODES[channels], {1: "gray", 3: "color"}[channels]
            plain = upright.mode == mode and not conversion.is_transparent(upright)
            if not resize and (not plain or upright.size != (width, height)):
                transparent = " with transparency" if conversion.is_transparent(upright) else ""
                raise UserError(
                    f"{upright.width} x {upright.height} pixels of mode {upright.mode}"
                    f"{transparent}; pass {width} x {height} pixels of 8-bit {name} (mode {mode}), "
                    "or `resize=True` to convert"
                )
            plane = _eight_bits(upright)
            behind = conversion.background_of(plane, background)
            pixels = np.asarray(conversion.opaque(plane, behind).convert(mode))
            return pixels.reshape(1, upright.height, upright.width, channels)
    except UserError:
        raise
    except Exception as error:  # the type depends on the damage
        raise UserError(f"not an intact PNG ({error}); save the image again") from error


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
    if array.ndim != 4 or array.shape[-1] not in _MODES or 0 in array.shape[1:]:
        raise UserError(
            f"the array has shape {list(shape)}; `resize=True` takes [H, W], [N, H, W], [H, W, C] "
            "or [N, H, W, C] with 1 (gray) or 3 (RGB) channels C"
        )
    return _as_channels(array, channels)


def _as_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Converts ``[N, height, width, 1 or 3]`` between gray and RGB."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    gray = (images @ _LUMA)[..., None]
    return (np.floor(gray + 0.5) if images.dtype == np.uint8 else gray).astype(images.dtype)


def _resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes ``[N, height, width, channels]`` bilinearly, each channel by itself."""
    if images.shape[1:3] == size:
        return images
    height, width = size
    resized = np.empty((len(images), height, width, images.shape[-1]), images.dtype)
    for i, channel in np.ndindex(len(images), images.shape[-1]):
        plane = Image.fromarray(images[i, ..., channel])
        resized[i, ..., channel] = plane.resize((width, height), Image.Resampling.BILINEAR)
    return resized
