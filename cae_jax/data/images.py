"""Reads user images, in any form and from files, as what a model takes; writes PNG files."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cae_jax import atomic
from cae_jax.config import Shape, TrainConfig
from cae_jax.data import conversion
from cae_jax.data.conversion import MODES, Conversion, checked_array, open_image
from cae_jax.errors import UserError, naming

# Pillow's modes that are converted without loss, by number of channels.
_EXACT = {1: {"1", "L"}, 3: {"1", "L", "P", "RGB"}}
_EXACT[4] = _EXACT[3] | {"LA", "PA", "RGBA"}
SUFFIXES = (*conversion.SUFFIXES, ".npy")  # of files that are read
_FILES = (str, os.PathLike, Image.Image)


def conversion_of(config: TrainConfig, image_shape: Shape) -> Conversion:
    """How user images are converted for a run: as its training images.

    A run that refused images of other sizes stretches them.
    """
    found = conversion.from_config(config, image_shape)
    return found._replace(resize="stretch") if config.resize == "none" else found


def prepare_images(images: np.ndarray, image_shape: Shape) -> np.ndarray:
    """Checks images and converts them to what the models take.

    Args:
        images: uint8, uint16 (divided by 257), bool (True is white), or floats in [0, 1], one image
            or N: ``image_shape``, flattened, or gray ones without the last axis.
        image_shape: expected ``(height, width, channels)``.

    Returns:
        uint8, or float32 in [0, 1], ``[N, *image_shape]``.

    Raises:
        UserError: another shape or type, channels first, values outside [0, 1] or not finite.
    """
    return _checked_values(
        _as_batch(np.asarray(images), "the array", image_shape, False), "the array"
    )


def take_images(images: Any, convert: Conversion, *, resize: bool = False) -> np.ndarray:
    """Takes images in any form: an array, a PIL image, the path of a file, or a list of those.

    Args:
        images: an array as of `prepare_images`, a PIL image, a path as of `read_images`, or a list
            of images, which may include arrays of one image each.
        convert: to the shape that the model takes, see `conversion_of`.
        resize: convert other sizes, colors, transparency, and images of 16 bits.

    Returns:
        uint8, or float32 in [0, 1], ``[N, height, width, channels]``; a single image has an N of 1.

    Raises:
        UserError: see `prepare_images` and `read_images`.
    """
    if isinstance(images, (list, tuple)) and any(isinstance(x, _FILES) for x in images):
        return joined([take_images(each, convert, resize=resize) for each in images])
    if isinstance(images, (str, os.PathLike)):
        return read_images(os.fspath(images), convert, resize=resize)
    if isinstance(images, Image.Image):
        return _read_image(images, "the image", convert, resize)
    try:
        array = np.asarray(images)
    except ValueError:
        raise UserError("the images differ in shape; pass them one by one") from None
    return _converted(array, "the array", convert, resize)


def _shape(convert: Conversion) -> Shape:
    """The shape of images after a conversion to a size."""
    assert convert.size is not None
    return *convert.size, convert.channels


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Images ``[N, ...]`` of all parts: uint8 if all are, else float32 in [0, 1]."""
    if len({part.dtype for part in parts}) > 1:
        whites = [255 if part.dtype == np.uint8 else 1 for part in parts]
        parts = [
            np.asarray(part / np.float32(white), np.float32)
            for part, white in zip(parts, whites, strict=True)
        ]
    return np.concatenate(parts)


def read_images(path: str | Path, convert: Conversion, *, resize: bool = False) -> np.ndarray:
    """Reads the image or images in a file.

    The EXIF orientation is applied; of several frames the first one is read. What keeps all values
    is always converted: gray to color, a palette to its colors, 1 bit to 8, and opaque images to
    those with transparency.

    Args:
        path: a PNG, JPEG, WebP, BMP, TIFF or GIF file of 8 bits a channel, or a .npy array as of
            `prepare_images`, with one image or N, also flattened.
        convert: to the shape that the model takes, see `conversion_of`.
        resize: convert other sizes, colors, transparency, and files of 16 bits.

    Returns:
        uint8, or float32 in [0, 1], ``[N, height, width, channels]``.

    Raises:
        UserError: missing or damaged file, other shape, color or type; names the file.
    """
    path = Path(os.path.expanduser(path))  # noqa: PTH111, the method fails on a file ~lock.png
    if not os.path.isfile(path):  # noqa: PTH113 - which raises without permission
        raise UserError(f"{path} is not a file that can be read; pass image files or .npy files")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is of an unknown type; files end in {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".npy":
        # np.load would also open .npz archives.
        with naming(path, "a readable array", "save it with numpy.save"), path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        images = _converted(array, f"{path}", convert, resize)
    else:
        images = _read_image(path, f"{path}", convert, resize)
    # Refused, not guessed: such a file is nearly always a mask, but a black image with a little
    # noise looks the same. Arrays in memory pass, where a dark frame must not stop a program.
    if images.dtype == np.uint8 and images.max(initial=0) == 1:
        raise UserError(
            f"{path} has whole numbers up to 1, which is black for uint8; if 1 is white, save the "
            "image as bool in a .npy file, or multiply it by 255"
        )
    return images


def _read_image(
    file: Path | Image.Image, name: str, convert: Conversion, resize: bool
) -> np.ndarray:
    """The image uint8 ``[1, height, width, channels]``."""
    image = open_image(file, name)
    try:
        return convert(image if resize else _exact(image, name, _shape(convert)), name)[None]
    finally:
        if image is not file:
            image.close()


def _exact(image: Image.Image, name: str, image_shape: Shape) -> Image.Image:
    """Refuses an image of another size, or with values that the conversion would lose."""
    height, width, channels = image_shape
    with conversion.reading(name):
        image = conversion.upright(image)
        gray_palette = image.mode == "P" and channels == 1
        if gray_palette:
            exact = not np.ptp(np.asarray(image.convert("RGB")), axis=-1).any()
        else:
            exact = image.mode in _EXACT[channels]
    transparent = conversion.is_transparent(image)
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
    plane = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    with atomic.replacing(path, durable=False) as temporary:
        Image.fromarray(plane).save(temporary, format="PNG")


def _checked_values(images: np.ndarray, name: str) -> np.ndarray:
    """The images as uint8, or as float32 in [0, 1]."""
    images = checked_array(images, name)
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def _converted(array: np.ndarray, name: str, convert: Conversion, resize: bool) -> np.ndarray:
    """An array as a batch of images; those of another shape become uint8."""
    images = _as_batch(array, name, _shape(convert), resize)
    if images.shape[1:] == _shape(convert):
        return _checked_values(images, name)
    return np.stack([convert(image, name) for image in images])


def _as_batch(array: np.ndarray, name: str, image_shape: Shape, resize: bool) -> np.ndarray:
    """Arranges an array as ``[N, height, width, channels]``, with `resize` of any size.

    Raises:
        UserError: no images, or images of another shape, or two readings are possible.
    """
    height, width, channels = image_shape
    shape, rank, pixels = array.shape, array.ndim, math.prod(image_shape)
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
            f"{name} has shape {list(shape)}, which looks like channels first; convert it with "
            "numpy.moveaxis(images, -3, -1)"
        )
    if not (resize or ambiguous):
        gray = f"[{height}, {width}] or [N, {height}, {width}], " if channels == 1 else ""
        raise UserError(
            f"{name} has shape {list(shape)}; it takes {gray}[{height}, {width}, {channels}] or "
            f"[N, {height}, {width}, {channels}], or flattened [{pixels}] or [N, {pixels}]: resize "
            f"or crop the images to {height} x {width} pixels, or pass `resize=True` to convert"
        )
    if ambiguous:
        raise UserError(
            f"{name} has shape {list(shape)}: {shape[0]} flattened images or one of "
            f"{shape[0]} x {pixels} pixels; save it as [{shape[0]}, {height}, {width}, {channels}] "
            f"or as [1, {shape[0]}, {pixels}]"
        )
    if rank == 2 or (rank == 3 and shape[-1] > 4):
        array = array[..., None]
    if rank == 2 or (rank == 3 and shape[-1] <= 4):
        array = array[None]
    known = {1, 3, channels}
    if array.ndim != 4 or array.shape[-1] not in known or 0 in array.shape:
        alpha = " or 4 (RGBA)" if channels == 4 else ""
        raise UserError(
            f"{name} has shape {list(shape)}; `resize=True` takes [H, W], [N, H, W], [H, W, C] "
            f"or [N, H, W, C] with 1 (gray) or 3 (RGB){alpha} channels C"
        )
    return array
