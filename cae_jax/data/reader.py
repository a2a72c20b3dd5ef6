"""Reads some images of an array into new memory, those of a memory map from its file."""

import math
import mmap
import os
import weakref

import numpy as np

from cae_jax.errors import UserError, reason_of


class Reader:
    """Images that are read by index.

    A process that touches a memory map whose file has shrunk, or whose disk has gone, is killed;
    one that reads the file gets an error.

    Args:
        images: uint8 ``[N, height, width, channels]``.

    Raises:
        UserError: the file is gone.

    Attributes:
        shape: ``(N, height, width, channels)``.
    """

    def __init__(self, images: np.ndarray) -> None:
        self.shape, self._images, self._file = images.shape, images, None
        root = images
        while isinstance(root.base, np.ndarray):
            root = root.base
        if isinstance(root, np.memmap) and images.flags.c_contiguous and hasattr(os, "preadv"):
            self._name = root.filename
            try:
                self._file = os.open(f"{root.filename}", os.O_RDONLY)
            except OSError as error:
                raise self._lost(error) from error
            weakref.finalize(self, os.close, self._file)
            self._start = root.offset + images.ctypes.data - root.ctypes.data

    def read(self, rows: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
        """Reads the images `rows` to the places of a new array of `count` images.

        Raises:
            UserError: the file cannot be read any more.
        """
        images = empty((count, *self.shape[1:]))
        if self._file is None:
            images[places] = self._images[rows]
            return images
        size, order = images[0].nbytes, np.argsort(rows)  # as they lie on the disk
        into = memoryview(images).cast("B")
        starts, offsets = places[order] * size, rows[order] * size + self._start
        try:
            for start, offset in zip(starts.tolist(), offsets.tolist(), strict=True):
                if os.preadv(self._file, (into[start : start + size],), offset) < size:
                    raise EOFError("it is shorter than at the start")
        except (OSError, EOFError) as error:
            raise self._lost(error) from error
        return images

    def _lost(self, error: Exception) -> UserError:
        return UserError(
            f"{self._name} cannot be read any more ({reason_of(error)}); restore it and start "
            "again: a training resumes after its last checkpoint"
        )


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """New memory for images."""
    # Whole pages, which JAX on a CPU takes without a copy, and which go back to the system with it.
    return np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
