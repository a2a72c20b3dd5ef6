"""Reads pictures of any size and color for a network that is applied at full size; writes them.

A picture keeps its colors, its transparency, and the EXIF data and ICC profile of its file.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cae_jax import atomic
from cae_jax.data.conversion import (
    Conversion,
    check_shape,
    checked_array,
    header,
    is_transparent,
    open_image,
    reading,
    upright,
)
from cae_jax.data.images import MODES, checked_file, read_array, refuse_mask
from cae_jax.errors import UserError

# Tags of TIFF that describe how its pixels are stored, the orientation, and the ICC profile.
_STORAGE = {
    *(*range(254, 260), 262, 266, 273, 274, *range(277, 282), 284, 317, 320, *range(322, 326)),
    *(330, 338, 339, 347, *range(512, 520), *range(529, 533), 34675),
}
_SUBORDINATE = (0x8769, 0x8825)  # tags of the tables of EXIF and of GPS
_ONE = (str, os.PathLike, Image.Image, np.ndarray)
_ICC_SPACES = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB "}


class Picture(NamedTuple):
    """A picture.

    Attributes:
        pixels: uint8, or float32 in [0, 1], ``[height, width, channels]``, of 1 (gray), 3 (RGB) or
            4 (RGBA) channels; upright.
        mode: Pillow's mode of what is written: L, LA, RGB or RGBA.
        metadata: ``exif`` and ``icc_profile`` of its file, as far as there are, as Pillow takes
            them.
    """

    pixels: np.ndarray
    mode: str
    metadata: dict[str, Any]


def take_pictures(images: Any, convert: Conversion) -> list[Callable[[], Picture]]:
    """Takes pictures in any form.

    Args:
        images: an array ``[H, W]``, ``[H, W, C]``, ``[N, H, W]`` or ``[N, H, W, C]`` of the types
            that `cae_jax.data.images.take_images` takes, a PIL image, a file of one of those, or a
            list of them.
        convert: says how values become pixels; its size and channels do not count.

    Returns:
        a function for each picture; those of image files read and decode them.

    Raises:
        UserError: a missing file, one that begins as no image, or an array of another type or
            shape; the functions, for a damaged file.
    """
    if isinstance(images, (list, tuple)) and any(isinstance(x, _ONE) for x in images):
        return [picture for each in images for picture in take_pictures(each, convert)]
    if isinstance(images, Image.Image):
        return [partial(_of_image, images, "the image", convert)]
    if not isinstance(images, (str, os.PathLike)):
        return _of_array(np.asarray(images), "the array")
    path = checked_file(images)
    if path.suffix.lower() == ".npy":
        array = read_array(path)
        refuse_mask(array, path)
        return _of_array(array, f"{path}")
    open_image(path, f"{path}").close()
    return [partial(_of_file, path, convert)]


def _of_array(array: np.ndarray, name: str) -> list[Callable[[], Picture]]:
    shape = array.shape
    if array.ndim == 2 or (array.ndim == 3 and shape[-1] in MODES):
        array = array[None]
    height, width, channels = check_shape(array.shape, name)
    if not height or not width:
        raise UserError(f"{name} has shape {list(shape)}, which has no pixels; give another")
    array = checked_array(array, name)
    array = array if array.dtype == np.uint8 else array.astype(np.float32)
    pictures = array.reshape(-1, height, width, channels)
    return [partial(Picture, pixels, MODES[channels], {}) for pixels in pictures]


def _of_file(path: Path, convert: Conversion) -> Picture:
    picture = _of_image(path, f"{path}", convert)
    refuse_mask(picture.pixels, path)
    return picture


def _of_image(file: Path | Image.Image, name: str, convert: Conversion) -> Picture:
    image = open_image(file, name)
    with contextlib.nullcontext() if image is file else image:
        _, colors = header(image, name)
        mode = {1: "L", 3: "RGB"}[colors] + "A" * is_transparent(image)
        metadata = _metadata(image, mode)
        with reading(name):
            image = upright(image)
        if "exif" in image.info:  # without the orientation that was applied
            metadata["exif"] = image.info["exif"]
        channels = 4 if mode.endswith("A") else colors
        pixels = convert._replace(size=None, channels=channels)(image, name)
        return Picture(pixels, mode, metadata)


def _metadata(image: Image.Image, mode: str) -> dict[str, Any]:
    """A profile of the same colors, and the EXIF data of a TIFF file."""
    metadata: dict[str, Any] = {}
    profile = image.info.get("icc_profile") or b""
    if profile[16:20] == _ICC_SPACES[mode]:
        metadata["icc_profile"] = profile
    with contextlib.suppress(Exception):  # damaged metadata leave the pixels intact
        found, kept = image.getexif(), Image.Exif()
        for tag in found.keys() - _STORAGE:
            kept[tag] = found.get_ifd(tag) if tag in _SUBORDINATE else found[tag]
        if found:
            metadata["exif"] = kept.tobytes()
    return metadata


def write_picture(path: Path, picture: Picture) -> None:
    """Writes a picture of uint8 as a PNG, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    pixels = picture.pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if image.mode != picture.mode:  # gray with transparency
        image = image.convert(picture.mode)
    with atomic.replacing(path, durable=False) as temporary:
        # Of a photograph, higher levels take seconds and save a tenth of the bytes.
        image.save(temporary, format="PNG", compress_level=1, **picture.metadata)
