"""Arrays of pixels of any type as 8 bits, or as floats in [0, 1]; checks of their shapes."""

import math

import numpy as np

from cae_jax.config import LEAST_SIDE, MAX_PIXELS, Shape
from cae_jax.errors import UserError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by number of channels


def checked_array(values: np.ndarray, name: str) -> np.ndarray:
    """Pixels of uint8, uint16 (divided by 257), bool or floats as uint8, or as floats in [0, 1].

    Raises:
        UserError: another type, or floats outside [0, 1] or not finite; names the images.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # of either byte order
        return np.rint(values / 257).astype(np.uint8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(values.dtype, np.floating):
        raise UserError(
            f"{name} is of type {values.dtype}; images take uint8, uint16, bool, or floats in "
            "[0, 1]: divide it by the value of white"
        )
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    finite = math.isfinite(low) and math.isfinite(high)
    if not finite or low < 0 or high > 1:
        advice = "divide them by the value of white" if low >= 0 else "shift and scale them"
        raise UserError(
            f"{name} has floats in [{low:g}, {high:g}]; images take finite ones in [0, 1]: "
            f"{advice if finite else 'replace those that are not finite'}, or pass uint8"
        )
    return values


def eight_bit_array(values: np.ndarray, name: str) -> np.ndarray:
    """Pixels as of `checked_array` as uint8 ``[..., height, width, channels]``.

    A gray image may be ``[height, width]``. Raises as `checked_array`.
    """
    values = checked_array(values, name)
    if values.dtype != np.uint8:
        values = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    return values[..., None] if values.ndim == 2 else values


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


def check_size(size: tuple[int, ...], name: str) -> None:
    """Refuses images smaller than the networks take, or of too many pixels.

    Raises:
        UserError: names the image.
    """
    if min(size) < LEAST_SIDE or math.prod(size) > MAX_PIXELS:
        raise UserError(
            f"{name} has {size[0]} x {size[1]} pixels; images take at least {LEAST_SIDE} x "
            f"{LEAST_SIDE} and at most {MAX_PIXELS} in all",
            "pass `image_size=64`",
        )
