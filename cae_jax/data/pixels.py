"""Arrays of pixels of any type as 8 bits, or as floats in [0, 1]; checks of their shapes."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from cae_jax.config import LEAST_SIDE, MAX_PIXELS, Shape, TrainConfig
from cae_jax.errors import UserError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by number of channels
_DARK = 64  # a quarter of 256
WHITE = "pass the value of `white`, such as `white=4095`, or `white='auto'`"


class RangeError(UserError):
    """Pixels whose white is not known, or that lie outside black and white."""


class Range(NamedTuple):
    """The values of black and white; a white below black inverts.

    Attributes:
        black: anything darker is black too.
        white: anything lighter is white too; None for what the type says: 255 for uint8, 65535 for
            uint16, and 1 for floats, which are then refused outside [0, 1].
    """

    black: float = 0.0
    white: float | None = None

    def concerns(self, dtype: np.dtype) -> bool:
        """Whether pixels of a type are scaled: not those of 8 bits if white is for other types."""
        eight = dtype.kind in "ui" and dtype.itemsize == 1
        largest = max(self.black, self.white or 0)
        return self != Range() and not (eight and not 1 <= largest <= 255)


def range_of(config: TrainConfig) -> Range:
    """The black and white of the images of a config, which were found if `white` is ``"auto"``."""
    if config.white == "auto":
        return Range(*config.levels) if config.levels else Range()
    return Range(config.black, config.white)


def extremes(values: np.ndarray) -> tuple[float, float] | None:
    """The smallest and the largest value of colors; None for bool, whose white is True."""
    colors = values[..., :3] if values.ndim > 2 and values.shape[-1] == 4 else values
    if values.dtype.kind not in "uif" or not colors.size:
        return None
    return float(colors.min()), float(colors.max())


def spanned(arrays: Iterable[np.ndarray]) -> tuple[float, float] | None:
    """The `extremes` of several arrays together."""
    return functools.reduce(joined, map(extremes, arrays), None)


def joined(
    one: tuple[float, float] | None, other: tuple[float, float] | None
) -> tuple[float, float] | None:
    """The smallest and the largest value of two ranges, of which each may be missing."""
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), max(one[1], other[1])


def checked_array(values: np.ndarray, name: str, levels: Range | None = None) -> np.ndarray:
    """Pixels of any type as uint8 (those of whole numbers and bool), or as floats in [0, 1].

    Args:
        values: alpha, the fourth of four channels, keeps the white of its type.
        name: how an error names them.
        levels: their black and white. Default: `Range()`.

    Raises:
        RangeError: a type whose white is not known, or floats outside [0, 1] that have no white.
        UserError: floats that are not finite.
    """
    levels, kind = levels or Range(), values.dtype.kind
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    scaled = levels.concerns(values.dtype)
    if scaled and values.ndim > 2 and values.shape[-1] == 4:
        parts = checked_array(values[..., :3], name, levels), checked_array(values[..., 3:], name)
        return np.concatenate(parts, axis=-1)
    if values.dtype == np.uint8 and not scaled:
        return values
    white = levels.white if scaled else None
    known = kind == "f" or (kind == "u" and values.dtype.itemsize <= 2)  # the white of the type
    if kind not in "iuf" or (white is None and not known):
        raise RangeError(
            f"{name} is of type {values.dtype}; images take uint8, uint16, bool, or floats in "
            "[0, 1]",
            "divide it by the value of white",
        )
    if kind == "f":
        _check_floats(values, name, bounded=white is None)
        if not scaled:
            return values
    if white is None:
        white = 1 if kind == "f" else np.iinfo(values.dtype).max
    black = levels.black if scaled else 0.0
    if black == white or (levels.white is None and black > white):
        raise RangeError(f"{name} has black at {black:g} and white at {white:g}", WHITE)
    shares = values.astype(np.float64)  # in place from here: arrays may be large
    shares -= black
    shares /= white - black
    np.clip(shares, 0, 1, out=shares)
    if kind == "f":
        return shares.astype(np.float32)
    shares *= 255
    return np.rint(shares, out=shares).astype(np.uint8)


def _check_floats(values: np.ndarray, name: str, bounded: bool) -> None:
    """Refuses floats that are not finite, or outside [0, 1] if they are bounded."""
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    finite = math.isfinite(low) and math.isfinite(high)
    if finite and (not bounded or (low >= 0 and high <= 1)):
        return
    problem = (
        f"{name} has floats in [{_shortest(low)}, {_shortest(high)}]; images take finite ones in "
        "[0, 1]"
    )
    if not finite:
        raise UserError(problem, "replace those that are not finite")
    advice = "divide them by the value of white" if low >= 0 else "shift and scale them"
    raise RangeError(problem, f"{advice}, or pass uint8")


def _shortest(value: Any) -> str:
    """A number with as many digits as tell it from others: 1.0000001, but 255."""
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def eight_bit_array(values: np.ndarray, name: str, levels: Range | None = None) -> np.ndarray:
    """Pixels as of `checked_array` as uint8 ``[..., height, width, channels]``.

    A gray image may be ``[height, width]``. Raises as `checked_array`.
    """
    values = checked_array(values, name, levels)
    if values.dtype != np.uint8:
        values = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    return values[..., None] if values.ndim == 2 else values


@dataclasses.dataclass
class Statistics:
    """The smallest, mean and largest value of images uint8 ``[..., channels]``, without alpha.

    Attributes:
        side: "targets" or "inputs" of pairs; "" for images alone.
        least, most, total, count: of their values so far.
    """

    side: str = ""
    least: int = 255
    most: int = 0
    total: int = 0
    count: int = 0

    def add(self, images: np.ndarray) -> None:
        """Counts more images, at least one."""
        colors = images[..., :3]
        self.least = min(self.least, int(colors.min()))
        self.most = max(self.most, int(colors.max()))
        self.total += int(colors.sum(dtype=np.int64))
        self.count += colors.size

    def __str__(self) -> str:
        return f"{self.side} of {self._values}" if self.side else self._values

    @property
    def _values(self) -> str:
        mean = self.total / max(self.count, 1)
        return f"values {self.least} to {self.most}, mean {mean:.1f} of 255"

    @property
    def _alike(self) -> str:
        return ", for inputs and targets alike" if self.side else ""

    def check(self, name: str) -> None:
        """Raises a `UserError` if nothing is lighter than 1, as in masks of 0 and 1."""
        if self.most == 1:
            side = f" in its {self.side}" if self.side else ""
            raise UserError(
                f"{name} has no pixel above 1 of 255{side}",
                "if white is less in its files, pass `white=1` for masks of 0 and 1, or another "
                f"value, or `white='auto'`{self._alike}",
            )

    @property
    def doubt(self) -> str:
        """What is odd about the values; "" if they fill a quarter of the range."""
        if self.most - self.least >= _DARK:
            return ""
        what = "black" if not self.most else "dark" if self.most < _DARK else "of little contrast"
        return (
            f"The {self.side or 'images'} are {what} ({self._values}); if white has another "
            "value in their files, name it, as in --white 4095, or find it by --white auto"
            f"{self._alike}"
        )


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
