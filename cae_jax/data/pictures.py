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
from PIL import ExifTags, Image

from cae_jax import atomic
from cae_jax.data import files
from cae_jax.data.conversion import Conversion
from cae_jax.data.files import frames, further_frames, open_image
from cae_jax.data.images import checked_file, read_array, refuse_mask
from cae_jax.data.pixels import MODES, Range, check_shape, checked_array
from cae_jax.errors import UserError

_ORIENTATION = ExifTags.Base.Orientation
# Tags of TIFF that describe how its pixels are stored, the orientation, and the ICC profile.
_STORAGE = {
    *(*range(254, 260), 262, 266, 273, _ORIENTATION, *range(277, 282), 284, 317, 320),
    *(*range(322, 326), 330, 338, 339, 347, *range(512, 520), *range(529, 533), 34675),
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
        metadata: ``exif`` and ``icc_profile`` of its file, if it has any, as Pillow takes them.
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
        return _of_array(np.asarray(images), "the array", convert)
    path = checked_file(images)
    if path.suffix.lower() == ".npy":
        array = read_array(path)
        refuse_mask(array, path, convert)
        return _of_array(array, f"{path}", convert)
    image = open_image(path, f"{path}")
    if isinstance(image, np.ndarray):
        return _of_array(image, f"{path}", convert)
    with image:
        if convert.frames == "first" or not further_frames(image, f"{path}"):
            return [partial(_of_file, path, convert)]
        pictures = [
            _of_image(each, f"{path}", convert) for each in frames(image, convert.frames, f"{path}")
        ]
        return [partial(Picture, *picture) for picture in pictures]


def _of_array(array: np.ndarray, name: str, convert: Conversion) -> list[Callable[[], Picture]]:
    shape = array.shape
    if array.ndim == 2 or (array.ndim == 3 and shape[-1] in MODES):
        array = array[None]
    height, width, channels = check_shape(array.shape, name)
    if not height or not width:
        raise UserError(f"{name} has shape {list(shape)}, which has no pixels; give another")
    array = checked_array(array.reshape(-1, height, width, channels), name, convert.range)
    array = array if array.dtype == np.uint8 else array.astype(np.float32)
    return [partial(Picture, pixels, MODES[channels], {}) for pixels in array]


def _of_file(path: Path, convert: Conversion) -> Picture:
    image: Any = open_image(path, f"{path}")
    with image:
        picture = _of_image(image, f"{path}", convert)
    refuse_mask(picture.pixels, path, convert)
    return picture


def _of_image(image: Image.Image, name: str, convert: Conversion) -> Picture:
    _, colors = files.header(image, name)
    mode = {1: "L", 3: "RGB"}[colors] + "A" * files.is_transparent(image)
    # Decoding closes a TIFF file, and finds what follows the pixels of a PNG file.
    exif = _exif(image) if image.format == "TIFF" else b""
    with files.reading(name):
        upright = convert.eight_bits(image, name)
    convert = convert._replace(size=None, channels=4 if mode.endswith("A") else colors)
    metadata = {"exif": exif or _exif(image), "icc_profile": _profile(image, mode)}
    kept = {key: value for key, value in metadata.items() if value}
    return Picture(convert._replace(range=Range())(upright, name), mode, kept)


def _profile(image: Image.Image, mode: str) -> bytes:
    """The ICC profile of an image if it is for the colors of a mode."""
    profile = image.info.get("icc_profile") or b""
    return profile if profile[16:20] == _ICC_SPACES[mode] else b""


def _exif(image: Image.Image) -> bytes:
    """The EXIF data of an image without its orientation, which is applied to the pixels."""
    with contextlib.suppress(Exception):  # damaged metadata leave the pixels intact
        found, kept = image.getexif(), Image.Exif()
        if "exif" in image.info and _ORIENTATION not in found:
            return image.info["exif"]
        for tag in found.keys() - _STORAGE:
            kept[tag] = found.get_ifd(tag) if tag in _SUBORDINATE else found[tag]
        return kept.tobytes() if kept else b""
    return b""


def write_picture(path: Path, picture: Picture) -> None:
    """Writes a picture of uint8 as a PNG, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    image = files.from_pixels(picture.pixels)
    if image.mode != picture.mode:  # gray with transparency
        image = image.convert(picture.mode)
    with atomic.replacing(path, durable=False) as temporary:
        # Of a photograph, higher levels take seconds and save a tenth of the bytes.
        image.save(temporary, format="PNG", compress_level=1, **picture.metadata)
