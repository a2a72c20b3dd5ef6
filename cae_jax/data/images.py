"""Reads and writes user images, and converts pixels to what the models take."""

import math
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cae_jax.errors import UserError

# Checked in the header: a PNG of a few kB can announce gigabytes.
MAX_PIXELS = 50_000_000


def scale(images: jax.Array) -> jax.Array:
    """Converts pixels to float32 in [0, 1]; uint8 is divided by 255."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def prepare_images(images: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Checks images and converts them to what the models take.

    Args:
        images: uint8, or floats in [0, 1], ``[N, *image_shape]``; gray ones also ``[N, height,
            width]``.
        image_shape: expected ``(height, width, channels)``.

    Returns:
        uint8, or float32 in [0, 1], ``[N, *image_shape]``.

    Raises:
        UserError: another shape or type, values outside [0, 1] or not finite.
    """
    images = np.asarray(images)
    height, width, channels = image_shape
    if images.ndim == 3 and channels == 1:
        images = images[..., None]
    if images.shape[1:] != image_shape:
        gray = f"[N, {height}, {width}] or " if channels == 1 else ""
        raise UserError(
            f"images have shape {list(images.shape)}; they take {gray}"
            f"[N, {height}, {width}, {channels}]: resize or crop them to {height} x {width} pixels"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images are {images.dtype}; they take uint8, or floats in [0, 1]")
    low, high = (images.min(), images.max()) if images.size else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= 1):
        raise UserError(
            f"float images lie in [{low:g}, {high:g}]; they take finite values in [0, 1]: "
            "divide them by the value of white, or pass uint8"
        )
    return images.astype(np.float32)


def read_images(
    path: str | Path, image_shape: tuple[int, int, int], *, resize: bool = False
) -> np.ndarray:
    """Reads the gray image or images in a file.

    Args:
        path: an 8-bit gray PNG, or a .npy array ``[height, width]``, ``[N, height, width]`` or
            ``[N, height, width, 1]`` of uint8 or of floats in [0, 1].
        image_shape: expected ``(height, width, 1)``.
        resize: convert other sizes and colors, bilinearly.

    Returns:
        uint8, or float32 in [0, 1], ``[N, *image_shape]``.

    Raises:
        UserError: missing or damaged file, other size, color or type; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; pass PNG or .npy files")
    readers = {".npy": _read_npy, ".png": _read_png}
    try:
        if path.suffix.lower() not in readers:
            raise UserError("the file type is unknown; files end in .png or .npy")
        # Warnings of Pillow and NumPy would add lines to that of the error.
        with warnings.catch_warnings(action="ignore"):
            images = readers[path.suffix.lower()](path, image_shape[:2], resize)
            return prepare_images(images, image_shape)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes a gray image ``[height, width, 1]`` in [0, 1] with 8 bits per pixel."""
    pixels = np.rint(np.clip(image[..., 0], 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


def _read_png(path: Path, size: tuple[int, int], resize: bool) -> np.ndarray:
    height, width = size
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = f"{image.width} x {image.height} pixels"
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{found} are more than the {MAX_PIXELS} allowed; shrink the image")
            if not resize and (image.mode != "L" or image.size != (width, height)):
                raise UserError(
                    f"{found} of mode {image.mode}; pass {width} x {height} pixels of 8-bit gray "
                    "(mode L), or `resize=True` to convert"
                )
            return _resize(image.convert("L"), size)[None]
    except UserError:
        raise
    except Exception as error:  # the type depends on the damage
        raise UserError(f"not an intact PNG ({error}); save the image again") from error


def _read_npy(path: Path, size: tuple[int, int], resize: bool) -> np.ndarray:
    try:
        with path.open("rb") as file:  # np.load would also open .npz archives
            images = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # the type depends on the damage
        reason = " ".join(str(error).split())[:200]  # NumPy quotes the header
        raise UserError(f"not a readable array ({reason}); save it with numpy.save") from error
    if images.ndim == 2:
        images = images[None]
    if not resize or images.ndim not in (3, 4) or images.shape[1:3] == size:
        return images
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if (
        images.ndim != 3
        or 0 in images.shape[1:]
        or images.dtype not in (np.uint8, np.float32, np.float64)
    ):
        raise UserError(
            f"array {list(images.shape)} of {images.dtype}; `resize=True` takes [H, W], [N, H, W] "
            "or [N, H, W, 1] of uint8, float32 or float64"
        )
    images = images.astype(images.dtype if images.dtype == np.uint8 else np.float32)
    resized = np.empty((len(images), *size), images.dtype)
    for i, image in enumerate(images):
        resized[i] = _resize(Image.fromarray(image), size)
    return resized


def _resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
