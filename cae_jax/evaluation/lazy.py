"""Arrays of images whose parts are computed when they are taken."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


class Lazy:
    """An array of which no more is in memory than is taken at a time.

    Args:
        shape: of the array.
        compute: its values of the indices in a slice, whose step is 1.
    """

    def __init__(self, shape: tuple[int, ...], compute: Callable[[slice], np.ndarray]) -> None:
        self.shape, self._compute = shape, compute

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return self._compute(slice(start, stop))
        return np.concatenate([self._compute(slice(row, row + 1)) for row in rows.tolist()])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


Images = np.ndarray | Lazy


def joined(arrays: Sequence[np.ndarray]) -> Images:
    """Arrays of images one after the other, of which some are in memory at a time."""
    starts = [0, *itertools.accumulate(map(len, arrays))]

    def compute(part: slice) -> np.ndarray:
        return np.concatenate(
            [
                array[max(0, part.start - start) : max(0, part.stop - start)]
                for start, array in zip(starts, arrays, strict=False)
            ]
        )

    return Lazy((starts[-1], *arrays[0].shape[1:]), compute) if len(arrays) > 1 else arrays[0]


def parts(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` indices, the last of which has the rest."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
