"""One's own pictures: PNG and .npy files in, PNG files out."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from cae_jax.errors import UserError
from cae_jax.models.inference import prepare_images

# Refused from the header on: a PNG of a few kB can announce gigabytes.
MAX_PIXELS = 50_000_000


def read_images(path: str | Path, *, resize: bool = False) -> np.ndarray:
    """The image or images in a file, as the models take them.

    Args:
        path: a PNG of 8-bit grey 28 x 28 pixels, or a .npy array ``[28, 28]``, ``[N, 28, 28]`` or
            ``[N, 28, 28, 1]`` of uint8 or of floats in [0, 1].
        resize: take other sizes and colours too and turn them into 28 x 28 grey pixels.

    Returns:
        uint8, or float32 in [0, 1], ``[N, 28, 28, 1]``.

    Raises:
        UserError: missing or damaged file, wrong size, colour or type, naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is no file; give PNG or .npy files")
    readers = {".npy": _read_npy, ".png": _read_png}
    try:
        if path.suffix.lower() not in readers:
            raise UserError("files end in .png or .npy")
        with warnings.catch_warnings(action="ignore"):  # they would add lines to that of the error
            return prepare_images(readers[path.suffix.lower()](path, resize))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes one image ``[28, 28, 1]`` in [0, 1] as 8-bit grey."""
    pixels = np.rint(np.clip(image[..., 0], 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


def _read_png(path: Path, resize: bool) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{image.width} x {image.height} pixels are too many; shrink it")
            if not resize and (image.mode != "L" or image.size != (28, 28)):
                raise UserError(
                    f"{image.width} x {image.height} pixels of mode {image.mode}; it takes 28 x 28 "
                    "8-bit grey ones (mode L), or --resize to convert"
                )
            grey = image.convert("L")
            return np.asarray(grey.resize((28, 28), Image.Resampling.BILINEAR))[None]
    except UserError:
        raise
    except Exception as error:  # Pillow raises all kinds, by what is damaged
        raise UserError(f"no intact PNG ({error})") from error


def _read_npy(path: Path, resize: bool) -> np.ndarray:
    try:
        with path.open("rb") as file:  # np.load would open archives of any kind too
            images = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # NumPy raises all kinds, by what is damaged
        reason = " ".join(str(error).split())[:200]  # it quotes the header
        raise UserError(f"no array that can be read ({reason}); save it with numpy.save") from error
    if images.ndim == 2:
        images = images[None]
    if not resize or images.ndim not in (3, 4) or images.shape[1:3] == (28, 28):
        return images
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if (
        images.ndim != 3
        or 0 in images.shape[1:]
        or images.dtype not in (np.uint8, np.float32, np.float64)
    ):
        raise UserError(
            f"array {list(images.shape)} of {images.dtype}; --resize takes [H, W], [N, H, W] or "
            "[N, H, W, 1] of uint8, float32 or float64"
        )
    images = images.astype(images.dtype if images.dtype == np.uint8 else np.float32)
    resized = np.empty((len(images), 28, 28), images.dtype)
    for i, image in enumerate(images):
        resized[i] = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR))
    return resized
