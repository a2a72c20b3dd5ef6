"""Reads user images, in any form and from files, as what a model takes; writes PNG files."""

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cae_jax import atomic
from cae_jax.config import Shape, TrainConfig
from cae_jax.data import files
from cae_jax.data.conversion import Conversion
from cae_jax.data.files import frames, open_image
from cae_jax.data.pixels import MODES, Range, checked_array
from cae_jax.errors import UserError, naming

# Pillow's modes that are converted without loss, by number of channels.
_EXACT = {1: {"1", "L"}, 3: {"1", "L", "P", "RGB"}}
_EXACT[4] = _EXACT[3] | {"LA", "PA", "RGBA"}
SUFFIXES = (*files.SUFFIXES, ".npy")  # of files that are read
_FILES = (str, os.PathLike, Image.Image)


def conversion_of(config: TrainConfig, image_shape: Shape) -> Conversion:
    """How user images are converted for a run: as its training images.

    A run that refused images of other sizes stretches them.
    """
    convert = Conversion.from_config(config, image_shape[:2], image_shape[2])
    return convert._replace(resize="stretch") if convert.resize == "none" else convert


def prepare_images(images: np.ndarray, image_shape: Shape) -> np.ndarray:
    """Checks an array of images and converts it, without resizing; see `take_images`."""
    convert = Conversion(image_shape[:2], "none", "auto", image_shape[2])
    return _converted(np.asarray(images), "the array", convert, resize=False)


def take_images(images: Any, convert: Conversion, *, resize: bool = False) -> np.ndarray:
    """Takes images in any form: an array, a PIL image, the path of a file, or a list of those.

    The EXIF orientation is applied; of several frames the first one is read. What keeps all values
    is always converted: gray to color, a palette to its colors, 1 bit to 8, and opaque images to
    those with transparency.

    Args:
        images: an array of uint8, uint16 (divided by 257), bool (True is white), or floats in
            [0, 1], one image or N: ``[height, width, channels]``, flattened, or gray ones without
            the last axis; a PIL image; the path of a .npy file with such an array, or of a PNG,
            JPEG, WebP, BMP, TIFF or GIF file of 8 bits a channel; or a list of those.
        convert: to the shape that the model takes, see `conversion_of`.
        resize: convert other sizes, colors, transparency, and images of 16 bits.

    Returns:
        uint8, or float32 in [0, 1], ``[N, height, width, channels]``; a single image has an N of 1.

    Raises:
        UserError: a missing or damaged file, another shape, color or type, channels first, values
            outside [0, 1] or not finite; names the file.
    """
    if isinstance(images, (list, tuple)) and any(isinstance(x, _FILES) for x in images):
        return joined([take_images(each, convert, resize=resize) for each in images])
    if isinstance(images, (str, os.PathLike)):
        return _read_file(os.fspath(images), convert, resize)
    if isinstance(images, Image.Image):
        return _read_image(images, "the image", convert, resize)
    try:
        array = np.asarray(images)
    except ValueError:
        raise UserError("the images differ in shape; pass them one by one") from None
    return _converted(array, "the array", convert, resize)


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Images ``[N, ...]`` of all parts: uint8 if all are, else float32 in [0, 1]."""
    if len({part.dtype for part in parts}) > 1:
        parts = [x / np.float32(255) if x.dtype == np.uint8 else x for x in parts]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _read_file(path: str | Path, convert: Conversion, resize: bool) -> np.ndarray:
    """Reads the image or images in a file; see `take_images`."""
    path = checked_file(path)
    if path.suffix.lower() == ".npy":
        images = _converted(read_array(path), f"{path}", convert, resize)
    else:
        images = _read_image(path, f"{path}", convert, resize)
    refuse_mask(images, path, convert)
    return images


def checked_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file of one of the `SUFFIXES`; raises a `UserError` for others."""
    path = Path(os.path.expanduser(path))  # noqa: PTH111, the method fails on a file ~lock.png
    if not os.path.isfile(path):  # noqa: PTH113 - which raises without permission
        raise UserError(f"{path} is not a file that can be read; pass image files or .npy files")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is of an unknown type; files end in {', '.join(SUFFIXES)}")
    return path


def read_array(path: Path) -> np.ndarray:
    """The array in a .npy file; raises a `UserError` for others."""
    # Mapped to memory, since it may be larger. np.load would also open .npz archives.
    with naming(path, "a readable array", "save it with numpy.save"):
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))


def refuse_mask(images: np.ndarray, path: Path, convert: Conversion) -> None:
    """Refuses whole numbers up to 1 from a file, unless black and white are known."""
    # Refused, not guessed: such a file is nearly always a mask, but a black image with a little
    # noise looks the same. Arrays in memory pass, where a dark frame must not stop a program.
    if convert.range == Range() and images.dtype == np.uint8 and images.max(initial=0) == 1:
        raise UserError(
            f"{path} has whole numbers up to 1, which is black for uint8; if 1 is white, save the "
            "image as bool in a .npy file, or multiply it by 255"
        )


def _read_image(
    file: Path | Image.Image, name: str, convert: Conversion, resize: bool
) -> np.ndarray:
    """The image, or all its frames, uint8 ``[N, height, width, channels]``."""
    image: Any = open_image(file, name)
    if isinstance(image, np.ndarray):
        return _converted(image, name, convert, resize)
    with contextlib.nullcontext() if image is file else image:
        found = frames(image, convert.frames, name)
        if resize:
            return np.stack([convert(frame, name) for frame in found])
        plain = convert._replace(range=Range())  # of 8 bits, as `_exact` makes them
        return np.stack([plain(_exact(frame, name, convert), name) for frame in found])


def _exact(image: Image.Image, name: str, convert: Conversion) -> Image.Image:
    """Refuses an image of another size, or with values that the conversion would lose."""
    height, width, channels = convert.shape
    with files.reading(name):
        image = convert.eight_bits(image, name)
        exact = image.mode in _EXACT[channels]
        if image.mode == "P" and channels == 1:
            exact = not np.ptp(np.asarray(image.convert("RGB")), axis=-1).any()
    transparent = files.is_transparent(image)
    if image.size != (width, height) or not exact or (transparent and channels != 4):
        color = {1: "gray", 3: "color", 4: "color with transparency"}[channels]
        raise UserError(
            f"{name} has {image.height} x {image.width} pixels (height x width) of mode "
            f"{image.mode}{' with transparency' if transparent else ''}; pass {height} x {width} "
            f"pixels of 8-bit {color} (mode {MODES[channels]}), or `resize=True` to convert"
        )
    return image


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes an image with 8 bits a channel, whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        image: ``[height, width, channels]`` in [0, 1], of 1 (gray), 3 (RGB) or 4 (RGBA) channels.

    Raises:
        OSError: the file cannot be written.
    """
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    with atomic.replacing(path, durable=False) as temporary:
        files.from_pixels(pixels).save(temporary, format="PNG")


def _converted(array: np.ndarray, name: str, convert: Conversion, resize: bool) -> np.ndarray:
    """An array as a batch of images; those of another shape become uint8."""
    images = _as_batch(array, name, convert.shape, resize)
    if images.shape[1:] != convert.shape:
        return np.stack([convert(image, name) for image in images])
    images = checked_array(images, name, convert.range)
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def _as_batch(array: np.ndarray, name: str, image_shape: Shape, resize: bool) -> np.ndarray:
    """Arranges an array as ``[N, height, width, channels]``, with `resize` of any size.

    Raises:
        UserError: no images, or images of another shape, or two readings are possible.
    """
    height, width, channels = image_shape
    shape, rank, pixels = array.shape, array.ndim, math.prod(image_shape)
    given = f"{name} has shape {list(shape)}"
    planes = (height, width) if channels == 1 else image_shape
    if shape in (image_shape, planes, (pixels,)):
        return array.reshape(1, *image_shape)
    flat = shape[1:] == (pixels,)
    ambiguous = flat and (resize or shape[0] == pixels)  # a square is likely an image
    if shape[1:] in (image_shape, planes) or (flat and not ambiguous):
        return array.reshape(shape[0], *image_shape)
    first = rank >= 3 and shape[-3] in MODES and shape[-1] not in MODES
    # With `resize` three axes may be a few gray images.
    if shape[-3:] == (channels, height, width) or (first and (rank == 4 or not resize)):
        raise UserError(
            f"{given}, which looks like channels first; convert it with "
            "numpy.moveaxis(images, -3, -1)"
        )
    if ambiguous:
        raise UserError(
            f"{given}: {shape[0]} flattened images or one of {shape[0]} x {pixels} pixels; save it "
            f"as [{shape[0]}, {height}, {width}, {channels}] or as [1, {shape[0]}, {pixels}]"
        )
    if not resize:
        gray = f"[{height}, {width}] or [N, {height}, {width}], " if channels == 1 else ""
        raise UserError(
            f"{given}; it takes {gray}[{height}, {width}, {channels}] or [N, {height}, {width}, "
            f"{channels}], or flattened [{pixels}] or [N, {pixels}]: resize or crop the images to "
            f"{height} x {width} pixels, or pass `resize=True` to convert"
        )
    if rank == 2 or (rank == 3 and shape[-1] > 4):
        array = array[..., None]
    if rank == 2 or (rank == 3 and shape[-1] <= 4):
        array = array[None]
    if array.ndim != 4 or array.shape[-1] not in {1, 3, channels} or 0 in array.shape:
        alpha = " or 4 (RGBA)" if channels == 4 else ""
        raise UserError(
            f"{given}; `resize=True` takes [H, W], [N, H, W], [H, W, C] or [N, H, W, C] with 1 "
            f"(gray) or 3 (RGB){alpha} channels C"
        )
    return array
