"""Opens image files, and reads what Pillow leaves out of them: values of more than 8 bits."""

import contextlib
import importlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from cae_jax.config import MAX_PIXELS
from cae_jax.data.pixels import MODES, check_shape
from cae_jax.errors import UserError, installing, naming

# The file formats that are read, by Pillow's names; PPM includes PGM and PBM.
FORMATS = [
    *("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"),
    *(["AVIF"] if "avif" in features.modules and features.check("avif") else []),
    *(["JPEG2000"] if features.check("jpg_2000") else []),
]
_HEIF = (".heic", ".heif", ".hif")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".apng"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpf", ".jpx", *_HEIF),
)
# Formats whose further images are frames or pages; in a JPEG they are previews.
_FRAMED = {"GIF", "WEBP", "PNG", "TIFF", "AVIF"}
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 exchange height and width
_TIFF_SIZE = (0x0100, 0x0101)  # the tags of the stored width and height
# Further tags of TIFF.
_BITS, _PHOTOMETRIC, _PLANES, _FORMAT, _REDUCED = 0x0102, 0x0106, 0x011C, 0x0153, 0x00FE
_COLOR_MODES = {"RGB", "RGBA", "LA"}
_GRAY_MODES = {"1", "L", "LA", "La", "I", "F"}
# A file that claims more pixels than `max_pixels` is read up to this many if it has a byte for each
# 50 of them, as photographs have.
_MOST_PIXELS, _PIXELS_OF_A_BYTE = 5 * MAX_PIXELS, 50
_TEXT_BYTES = 2**26  # of decompressed text and color profiles in a PNG


class UnreadableError(UserError):
    """A file is not an intact image; left out if the config skips such files."""


class Raw(NamedTuple):
    """The values of an image of other than 8 bits.

    Attributes:
        values: ``[height, width]`` or ``[height, width, channels]``, without orientation.
        white: the largest value that the file says it may hold; None for that of its type.
        inverted: whether black and white are exchanged, as in a TIFF file whose white is 0.
    """

    values: np.ndarray
    white: int | None = None
    inverted: bool = False


def open_image(file: Path | bytes | Image.Image, name: str) -> Image.Image | np.ndarray:
    """Opens an image without decoding it.

    Args:
        file: path or content of a file; or an image in memory, which is loaded.
        name: how an error names it.

    Returns:
        an image; or pixels ``[H, W]`` or ``[H, W, C]`` of any type, of a TIFF or .npy file that
        Pillow does not read.

    Raises:
        UnreadableError: not an image of the `FORMATS`.
        UserError: an image that takes a package which is not installed, or of several pages.
    """
    with reading(name):
        if isinstance(file, Image.Image):
            if not _has_sixteen_bits(file):  # which are read from its file
                file.load()  # a draft would shrink the caller's JPEG
            return file
        if isinstance(file, Path) and file.suffix.lower() == ".npy":
            return _array(file, name)
        return _opened(io.BytesIO(file) if isinstance(file, bytes) else file, name)


def _array(path: Path, name: str) -> np.ndarray:
    values = np.lib.format.open_memmap(path, mode="r")
    if values.ndim != 2 and not (values.ndim == 3 and values.shape[-1] in MODES):
        raise UserError(
            f"{name} has shape {list(values.shape)}, and a .npy file in a folder holds one image, "
            "[H, W] or [H, W, C]",
            "give the file itself if it holds many",
        )
    return values


def _opened(source: Path | io.BytesIO, name: str) -> Image.Image | np.ndarray:
    try:
        image: Any = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        return _opened_otherwise(source, name)
    if image.format == "TIFF":
        image.filename = ""  # Pillow 13 maps the file to memory with its sides exchanged
        tags = image.tag_v2
        signed = image.mode == "L" and tags.get(_FORMAT, (1,))[0] == 2
        if signed or (tags.get(_PLANES) == 2 and tags.get(_BITS, (1,))[0] > 8):
            with image:  # which Pillow would read as if it were of 8 unsigned bits
                image.fp.seek(0)
                return _by_tifffile(image.fp, name)
    return image


def _opened_otherwise(source: Path | io.BytesIO, name: str) -> Image.Image | np.ndarray:
    """Opens what Pillow does not know."""
    with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source) as file:
        file.seek(0)
        start = file.read(12)
        file.seek(0)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _by_tifffile(source, name)
    if start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        _extra("pillow_heif", name, "HEIC file").register_heif_opener()
        return Image.open(source, formats=["HEIF"])
    if start == b"version http":
        raise ValueError("it is a pointer of Git LFS: run git lfs pull")
    raise ValueError(f"it begins as none of {', '.join(FORMATS)}")


def _by_tifffile(source: Any, name: str, page: int | None = None) -> np.ndarray:
    """The values of a page of a TIFF file, by default of the only one."""
    tifffile = _extra("tifffile", name, "TIFF of this type")
    with tifffile.TiffFile(source) as file:
        if page is None and len(file.pages) > 1:
            raise UserError(
                f"{name} has {len(file.pages)} pages of {file.pages[0].dtype}, and takes one; save "
                "them as a .npy file"
            )
        found = file.pages[page or 0]
        if found.photometric == 0:
            raise UserError(
                f"{name} has pixels of {found.dtype} whose white is 0; invert and save it"
            )
        return np.moveaxis(found.asarray(), 0, -1) if found.axes == "SYX" else found.asarray()


def _extra(module: str, name: str, what: str) -> Any:
    """Imports a package that reads a rare format."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnreadableError(
            f"{name} is a {what}, which takes {module.replace('_', '-')}",
            installing("formats"),
        ) from error


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what Pillow raises into an `UnreadableError`; its warnings would add lines.

    Of Pillow's bounds against bombs `check_pixels` takes the place of one, and text in a PNG may be
    longer than Pillow's 1 MB, as that of a photograph's editor.
    """
    with (
        _bounds,
        warnings.catch_warnings(action="ignore"),
        naming(name, "a readable image", "save it again", raises=UnreadableError),
    ):
        yield


class _Bounds:
    """Replaces Pillow's bounds, which are the process's, while any thread reads an image."""

    def __init__(self) -> None:
        self._lock, self._readers = threading.Lock(), 0
        self._before: tuple[int | None, int] = None, 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
                Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = None, _TEXT_BYTES
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = self._before


_bounds = _Bounds()


def check_pixels(image: Image.Image, name: str, most: int) -> None:
    """Refuses an image that would decode to gigabytes from a few kilobytes.

    Args:
        image: opened from a file and not decoded, after `draft`; others pass.
        name: how an error names it.
        most: the pixels of any file; one whose bytes support its claim may have 250 million.

    Raises:
        UnreadableError: the image claims more pixels.
    """
    file = getattr(image, "fp", None)
    if file is None or image.width * image.height <= most:
        return
    size = (
        len(file.getbuffer()) if isinstance(file, io.BytesIO) else os.fstat(file.fileno()).st_size
    )
    most = max(most, min(_MOST_PIXELS, _PIXELS_OF_A_BYTE * size))
    if image.width * image.height > most:
        raise UnreadableError(
            f"{name} claims {image.height} x {image.width} pixels in {size} bytes, of which {most} "
            "are allowed",
            f"pass `max_pixels={image.width * image.height}` if it is an image",
        )


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


def further_frames(image: Image.Image | np.ndarray, name: str) -> int:
    """The number of frames or pages after the first one.

    Raises:
        UnreadableError: one of them is damaged.
    """
    if isinstance(image, np.ndarray) or image.format not in _FRAMED:
        return 0
    with reading(name):
        return getattr(image, "n_frames", 1) - 1


def frames(image: Any, which: str, name: str) -> Iterator[Any]:
    """The first of the frames or pages of an image, or all in turn, without smaller versions.

    Raises:
        UnreadableError: a frame is damaged.
    """
    yield image
    for i in range(1, 1 + further_frames(image, name) if which == "all" else 1):
        with reading(name):
            image.seek(i)
            reduced = image.format == "TIFF" and image.getexif().get(_REDUCED, 0) & 1
        if not reduced:
            yield image


def upright(image: Image.Image) -> Image.Image:
    """Decodes an image and applies its EXIF orientation."""
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata leave the pixels intact
        return ImageOps.exif_transpose(image)
    return image


def turned(pixels: Image.Image, as_in: Image.Image) -> Image.Image:
    """Pixels with the EXIF orientation of the image that they were read from."""
    with contextlib.suppress(Exception):
        pixels.getexif()[_ORIENTATION] = as_in.getexif().get(_ORIENTATION, 1)
    return upright(pixels)


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """An image of pixels uint8 ``[height, width, channels]``, of 1, 3 or 4 channels."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent color."""
    return "transparency" in image.info or not {"A", "a"}.isdisjoint(image.getbands())


def raw(image: Any, name: str, whole: bool) -> Raw | None:
    """The values of an image of other than 8 bits, None for other images.

    Args:
        image: just opened.
        name: how an error names it.
        whole: also read colors of 16 bits, of which Pillow keeps the upper 8.
    """
    if whole and _has_sixteen_bits(image):
        return Raw(_sixteen_bits(image, name))
    own_white = _ppm_white(image)
    if whole and own_white and image.mode == "RGB":
        raise UserError(f"{name} has colors of 16 bits, of which Pillow reads 8; save it as PNG")
    if not image.mode.startswith(("I", "F")):
        return None
    values = np.asarray(image)
    if own_white:  # of which Pillow makes 65535
        stored = np.rint(values * (own_white / 65535)).astype(np.uint16)
        return Raw(stored, own_white)
    if image.format != "TIFF":  # mode I is that of PGM, and of 16-bit PNG in older versions
        small = image.mode == "I" and values.min(initial=0) >= 0 and values.max(initial=0) < 2**16
        return Raw(values.astype(np.uint16) if small else values)
    tags = image.tag_v2
    bits, form = tags.get(_BITS, (1,))[0], tags.get(_FORMAT, (1,))[0]
    if image.mode == "I":  # in which Pillow has all of them
        values = values.astype(f"{'i' if form == 2 else 'u'}{bits // 8}")
    white = 2**bits - 1 if values.dtype == np.uint16 and bits < 16 else None
    return Raw(values, white, tags.get(_PHOTOMETRIC) == 0)


def _has_sixteen_bits(image: Any) -> bool:
    """Whether an image that is not decoded has colors of 16 bits, of which Pillow keeps 8."""
    if image.mode not in _COLOR_MODES or image.format not in ("PNG", "TIFF"):
        return False
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    return any(";16" in (x if isinstance(x, str) else str(x[0])) for x in arguments)


def _ppm_white(image: Any) -> int:
    """The white of more than 8 bits that a PPM or PGM file names; 0 for others."""
    tiles = image.tile if image.format == "PPM" else ()
    white = tiles[0][3][1] if tiles and tiles[0][0].startswith("ppm") else 0
    return white if white > 255 else 0


def _sixteen_bits(image: Any, name: str) -> np.ndarray:
    """Colors of 16 bits, ``[height, width, 3 or 4]``."""
    file = image.fp
    position = file.tell()
    file.seek(0)
    if image.format == "TIFF":
        return _by_tifffile(file, name, image.tell())
    values = _extra("imagecodecs", name, "PNG of 16 bits").png_decode(file.read())
    file.seek(position)
    gray = values.shape[-1] == 2
    return np.concatenate([values[..., :1]] * 3 + [values[..., 1:]], -1) if gray else values
