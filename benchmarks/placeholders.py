"""Placeholders of images in a few bytes: BlurHash, by its library, and ThumbHash.

ThumbHash is written here as in https://github.com/evanw/thumbhash, for square images without
transparency. Of its packages for Python one decodes wrongly, one keeps Pillow below 11, and one has
no wheels for all our Pythons.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cae_jax.errors import UserError, installing

BLUR_SIZES = ((3, 3), (4, 3), (4, 4), (6, 6))  # components in x and y; its pages show 4 and 3
BLUR_BITS = math.log2(83)  # of a character
THUMB_SIDE = 100  # pixels, at most
_SIDES = (7, 3, 3)  # frequencies of a side, of the mean of the colors and two differences
_HEADER = 5  # bytes


def blur_library() -> Any:
    """The library of BlurHash.

    Raises:
        UserError: it is missing.
    """
    try:
        return importlib.import_module("blurhash")
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing; {installing('placeholders')}") from error


def blur_hash(images: np.ndarray, components: tuple[int, int]) -> list[str]:
    """Texts of images, uint8 ``[N, H, W, 3]``."""
    library = blur_library()
    return [library.encode(image, *components) for image in images]


def from_blur_hash(texts: Sequence[str], height: int, width: int) -> np.ndarray:
    """Images of texts, uint8 ``[N, height, width, 3]``."""
    library = blur_library()
    return np.array([library.decode(text, width, height) for text in texts], np.uint8)


def thumb_hash(images: np.ndarray) -> list[bytes]:
    """24 bytes for each image, uint8 ``[N, side, side, 3]``."""
    red, green, blue = np.moveaxis(images / 255, -1, 0)
    channels = (red + green + blue) / 3, (red + green) / 2 - blue, red - green
    means, scales, waves = zip(*map(_analysed, channels, _SIDES), strict=True)
    low = _round(63 * means[0]) | _round(31.5 + 31.5 * means[1]) << 6
    low |= _round(31.5 + 31.5 * means[2]) << 12 | _round(31 * scales[0]) << 18
    high = _SIDES[0] | _round(63 * scales[1]) << 3 | _round(63 * scales[2]) << 9
    nibbles = np.concatenate([_round(15 * each) for each in waves], axis=1)
    nibbles = np.pad(nibbles, ((0, 0), (0, nibbles.shape[1] % 2)))
    body = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).astype(np.uint8)
    return [
        int(a).to_bytes(3, "little") + int(b).to_bytes(2, "little") + rest.tobytes()
        for a, b, rest in zip(low, high, body, strict=True)
    ]


def from_thumb_hash(hashes: Sequence[bytes], side: int) -> np.ndarray:
    """Images of hashes, uint8 ``[N, side, side, 3]``."""
    content = np.array([list(each) for each in hashes], np.int64)
    low = content[:, 0] | content[:, 1] << 8 | content[:, 2] << 16
    high = content[:, 3] | content[:, 4] << 8
    means = (low & 63) / 63, (low >> 6 & 63) / 31.5 - 1, (low >> 12 & 63) / 31.5 - 1
    # The decoder makes colors stronger, as the format has it.
    scales = (low >> 18 & 31) / 31, (high >> 3 & 63) / 63 * 1.25, (high >> 9 & 63) / 63 * 1.25
    nibbles = np.stack([content[:, _HEADER:] & 15, content[:, _HEADER:] >> 4], -1)
    waves = nibbles.reshape(len(content), -1) / 7.5 - 1
    channels, start = [], 0
    for mean, scale, n in zip(means, scales, _SIDES, strict=True):
        rows, columns = _frequencies(n)
        some = waves[:, start : start + len(rows)] * scale[:, None]
        start += len(rows)
        across, down = _cosines(columns, side), _cosines(rows, side)
        channels.append(mean[:, None, None] + 2 * np.einsum("nk,ky,kx->nyx", some, down, across))
    luma, yellow, red = channels
    blue = luma - 2 / 3 * yellow
    pixels = np.stack([(3 * luma - blue + red) / 2, (3 * luma - blue - red) / 2, blue], -1)
    return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def _analysed(channel: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean ``[N]``, largest amplitude ``[N]``, and the amplitudes in [0, 1] ``[N, K]``."""
    rows, columns = _frequencies(n)
    side = channel.shape[1]
    amplitudes = np.einsum("nyx,ky,kx->nk", channel, _cosines(rows, side), _cosines(columns, side))
    amplitudes /= side * side
    scale = np.abs(amplitudes).max(1)
    relative = np.divide(
        *(amplitudes, scale[:, None]), out=np.full_like(amplitudes, -1), where=scale[:, None] > 0
    )
    return channel.mean((1, 2)), scale, 0.5 + 0.5 * relative


def _frequencies(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of rows and columns, without the mean: both together below n."""
    rows, columns = np.nonzero(np.add.outer(np.arange(n), np.arange(n)) < n)
    return rows[1:], columns[1:]


def _cosines(frequencies: np.ndarray, side: int) -> np.ndarray:
    return np.cos(np.pi / side * np.outer(frequencies, np.arange(side) + 0.5))


def _round(x: np.ndarray) -> np.ndarray:
    """To whole numbers, halves upwards as in JavaScript."""
    return np.floor(x + 0.5).astype(np.int64)
