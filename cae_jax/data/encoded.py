"""Images that stay in their files, compressed, and are decoded whenever they are read."""

import copy
import functools
import math
import threading
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from cae_jax.data.decoding import ColorError, Converter
from cae_jax.data.growing import checksum
from cae_jax.data.reader import Reader, empty
from cae_jax.data.sources import Item
from cae_jax.data.workers import Outcome, ShortageError, Workers
from cae_jax.errors import UserError


class Encoded:
    """An array of images, uint8 ``[N, height, width, channels]``, that are decoded to be read.

    Args:
        shape: of the array.
        checks: uint32 ``[N, 2]``: of each image the index of its item, and its `checksum`.
        items: gives all items, when the first image is read.
        converter: converts them, as at first.
        workers: number of processes that decode.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        shape: tuple[int, ...],
        checks: np.ndarray,
        items: Callable[[], list[Item]],
        converter: Converter,
        workers: int,
    ) -> None:
        self._one, self._checks, self._converter = shape[1:], checks, converter
        self._items = functools.cache(items)
        self._workers = Workers(workers)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return len(self), *self._one

    @property
    def nbytes(self) -> int:
        """The bytes of the decoded images."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._checks)

    def __getitem__(self, rows: slice) -> Self:
        """Some of the images, still in their files."""
        other = copy.copy(self)
        other._checks = self._checks[rows]
        return other

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All images, decoded."""
        rows = np.arange(len(self))
        return np.asarray(self.read(rows, rows, len(self)), dtype)

    def read(self, rows: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
        """Decodes the images `rows` to the places of a new array of `count` images.

        Raises:
            UserError: a file cannot be read any more, or has other pixels than at first.
        """
        images, found = empty((count, *self._one)), self._items()
        checks = self._checks[rows]
        outcomes = self._workers.map(self._converter, (found[i] for i in checks[:, 0]))
        for place, check, (item, outcome) in zip(places, checks[:, 1], outcomes, strict=True):
            if not threading.main_thread().is_alive():  # the process ends, and waits for this one
                break
            images[place] = _checked(item, outcome, check)
        return images


def _checked(item: Item, outcome: Outcome, check: int) -> np.ndarray:
    """The image of an item, if it is the one that was there at first."""
    try:
        [[image], _] = outcome.result()
        problem = "" if checksum(image) == check else "it has other pixels than at first"
    except ShortageError:
        raise
    except (UserError, ColorError) as error:
        image, problem = np.zeros(0), f"{error}" or "it has other colors than at first"
    if problem:
        raise UserError(
            f"{item.name} cannot be read any more ({problem}); restore it and start again: a "
            "training resumes after its last checkpoint"
        )
    return image


def reader(images: np.ndarray | Encoded) -> Reader | Encoded:
    """Reads images by index."""
    return images if isinstance(images, Encoded) else Reader(images)
