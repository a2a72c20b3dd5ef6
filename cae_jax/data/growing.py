"""A .npy file that grows by one element after the other, and continues after a kill."""

import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_magic, write_array_header_1_0

from cae_jax import atomic

_BLOCK = 2**20  # bytes that are hashed at once


class Growing:
    """A .npy file to which elements are appended within a ``with`` statement.

    Args:
        path: of the file, which is created or replaced.
        dtype: of the elements.
        digest: is updated with their bytes.
        count: elements that an earlier process has written, which stay.
    """

    def __init__(self, path: Path, dtype: Any, digest: Any, count: int = 0) -> None:
        self.dtype, self._path, self._digest = np.dtype(dtype), path, digest
        self._file = path.open("r+b" if count else "wb")
        self._shape: tuple[int, ...] = (0,)
        if count:
            self._shape = (count, *_shape(self._file)[1:])
            self._file.seek(count * _bytes(self._shape, self.dtype), os.SEEK_CUR)
            self._file.truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)  # NumPy pads headers so that the first axis may grow
            self._write_header()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array, ``(0,)`` without elements."""
        return self._shape

    def append(self, element: Any) -> None:
        """Appends an element, a number or an array of the shape of the others."""
        element = np.asarray(element, self.dtype)
        if self._shape == (0,):
            self._shape = (0, *element.shape)
            self._write_header()
        self._shape = (self._shape[0] + 1, *element.shape)
        content = element.tobytes()
        self._file.write(content)
        self._digest.update(content)

    def sync(self) -> None:
        """Waits until the elements are on the disk."""
        self._file.flush()
        atomic.sync(self._path)

    def _write_header(self) -> None:
        values = {"descr": self.dtype.str, "fortran_order": False, "shape": self._shape}
        write_array_header_1_0(self._file, values)


class Checks:
    """What identifies images that stay in their files: a .npy file, uint32 ``[N, 2]``.

    It has, of each image, the index of its item and its `checksum`.

    Args:
        path: of the file, which is written at the end of a ``with`` statement.
        digest: is updated with the bytes of the images.
        index: gives the index of the item whose image is appended.
    """

    def __init__(self, path: Path, digest: Any, index: Callable[[], int]) -> None:
        self._path, self._digest, self._index = path, digest, index
        self._checks: list[tuple[int, int]] = []
        self.dtype = np.dtype(np.uint32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        np.save(self._path, np.array(self._checks, self.dtype).reshape(self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return len(self._checks), 2

    def append(self, image: np.ndarray) -> None:
        """Appends what identifies an image."""
        self._digest.update(np.ascontiguousarray(image))
        self._checks.append((self._index(), checksum(image)))


def checksum(image: np.ndarray) -> int:
    """The CRC-32 of an image."""
    return zlib.crc32(np.ascontiguousarray(image))


def hash_elements(path: Path, count: int, digest: Any) -> None:
    """Updates a digest with the first elements of a file; raises anything where it is damaged."""
    with path.open("rb") as file:
        read_magic(file)
        shape, _, dtype = read_array_header_1_0(file)
        left = count * _bytes(shape, dtype)
        while left and (block := file.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)


def _shape(file: IO[bytes]) -> tuple[int, ...]:
    read_magic(file)
    return read_array_header_1_0(file)[0]


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape[1:]) * dtype.itemsize
