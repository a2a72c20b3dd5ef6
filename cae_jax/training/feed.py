"""Feeds training images to the steps: from an array of all of them, or in chunks from the host.

Images that exceed a budget are streamed. A chunk has those of some steps one after the other, in
the order of the epoch's permutation, so a step takes the same images as it would from an array of
all. While a chunk is in use, a thread reads the next one.
"""

import copy
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import jax
import numpy as np

from cae_jax.errors import UserError
from cae_jax.ops import settings
from cae_jax.training.devices import Devices

_UNITS = {"": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
# A chunk that is larger begins later and trains no faster, if it has one in this many images.
_CHUNK_BYTES, _CHUNK_SHARE = 256 * 2**20, 16

Order = Callable[[jax.Array, np.int32], jax.Array]
# Images, batches of indices into them, and the steps that may be taken with these.
Part = tuple[jax.Array, jax.Array, int, int]


class Plan(NamedTuple):
    """How images share a budget.

    Attributes:
        steps: training steps of a chunk.
        evaluated: validation images on the device at a time.
        description: of the numbers, for the log.
    """

    steps: int
    evaluated: int
    description: str


def bytes_of(budget: str | float | None) -> int | None:
    """The bytes of a budget, if any: a number, or a text such as ``"2GiB"`` or ``"512 MB"``.

    Raises:
        UserError: another text, or less than one byte.
    """
    if budget is None:
        return None
    match = re.fullmatch(r"([\d.]+) ?(\w*)", f"{budget}")
    try:
        number, unit = match.groups() if match else ("", "")
        size = int(float(number) * _UNITS[unit.lower()])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise UserError(
            f"`device_budget` is {budget!r}; it takes a number of bytes such as 2GiB or 512MB"
        )
    return size


def make_plan(
    budget: int | None,
    free: int,
    images: tuple["Images", np.ndarray],
    step: int,
    evaluated: int,
    least: int,
) -> Plan | None:
    """How images share a budget; None if all fit.

    Args:
        budget: bytes; None for `free`.
        free: bytes that the programs leave.
        images: for training and validation, uint8 ``[N, height, width, channels]``.
        step: images of a training step, of all members of a group.
        evaluated: bytes that the evaluation of an image takes.
        least: the fewest validation images that are evaluated at a time, at most all.

    Raises:
        UserError: the budget is less than two chunks of a step and `least` images take.
    """
    train, validation = images
    step_bytes, train_bytes = step * math.prod(train.shape[1:]), math.prod(train.shape)
    all_bytes = train_bytes + len(validation) * evaluated
    needed = 2 * step_bytes + least * evaluated
    if budget is None:
        budget = max(free, needed)
    if all_bytes <= budget:
        return None
    if budget < needed:
        raise UserError(
            f"`device_budget` is {budget / 1e6:,.2f} MB; two steps of {step} training images and "
            f"{least} validation images take {needed / 1e6:,.2f} MB; give more, or lower "
            "`batch_size` or `test_examples`"
        )
    shared = budget - 2 * step_bytes
    most = min(len(validation), max(least, min(shared, budget // 3) // evaluated))
    useful = max(_CHUNK_BYTES, train_bytes // _CHUNK_SHARE, step_bytes)
    steps = min((budget - most * evaluated) // 2, useful) // step_bytes
    description = (
        f"Streaming {train.shape[0]:,} images: all take {all_bytes / 1e6:,.1f} MB, and the device "
        f"budget is {budget / 1e6:,.1f} MB. It holds two chunks of {steps:,} steps, "
        f"{2 * steps * step_bytes / 1e6:,.1f} MB, and {most:,} validation images"
    )
    return Plan(steps, most, description)


class Source(Protocol):
    """Images on the host that are read by index, such as a `cae_jax.data.reader.Reader`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, height, width, channels)``."""
        ...

    def read(self, rows: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
        """Reads the images `rows` to the places of a new array of `count` images."""
        ...


Images = np.ndarray | jax.Array | Source


class Resident:
    """All images on the device.

    Args:
        images: uint8 ``[N, height, width, channels]``; those on the device stay there.
        order: ``order(key, epoch)`` gives the batches of an epoch, see `programs.order`.
        key: for `order`.
        devices: that have the images.
    """

    def __init__(
        self, images: np.ndarray | jax.Array, order: Order, key: jax.Array, devices: Devices
    ) -> None:
        self._images, self._order, self._key = devices.put(images), order, key
        self._devices, self._epoch, self._batches = devices, 0, jax.numpy.zeros(0)

    def with_key(self, key: jax.Array) -> "Resident":
        """The same images in the order of another key."""
        return Resident(self._images, self._order, key, self._devices)

    def parts(self, epoch: int, start: int, stop: int) -> Iterator[Part]:
        """The images and batches of the steps ``start <= i < stop`` of an epoch, counted from 1."""
        if epoch != self._epoch:
            batches = self._order(self._key, np.int32(epoch))
            self._batches = self._devices.cut(batches, self._images.shape[0])
            self._epoch = epoch
        yield self._images, self._batches, start, stop


class Streamed:
    """Images on the host, of which the device has those of some steps at a time.

    Args:
        source: reads them.
        order, key: as of `Resident`.
        shape: M, S, B: members of the group, steps in an epoch, and images in a batch.
        steps: of a chunk.
        epochs: of the training.
        devices: that train.
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        key: jax.Array,
        shape: tuple[int, int, int],
        steps: int,
        epochs: int,
        devices: Devices,
    ) -> None:
        self._source, self._order, self._key = source, order, key
        self._shape, self._steps, self._epochs = shape, steps, epochs
        self._devices = devices
        self._thread = ThreadPoolExecutor(1)
        self._batches = self._batches_of_chunks()
        self._epoch, self._order_MxSxB = 0, np.zeros((0, 0, 0), np.int32)
        self._chunk: tuple[tuple[int, int], jax.Array] | None = None  # epoch and chunk
        self._ahead: tuple[tuple[int, int], Future[jax.Array]] | None = None

    def with_key(self, key: jax.Array) -> "Streamed":
        """The same images in the order of another key."""
        other = copy.copy(self)
        other._key, other._epoch, other._chunk, other._ahead = key, 0, None, None
        return other

    def parts(self, epoch: int, start: int, stop: int) -> Iterator[Part]:
        """The images and batches of the steps ``start <= i < stop`` of an epoch, counted from 1.

        Of several parts: a caller has taken the steps of one when it asks for the next.

        Raises:
            UserError: the images cannot be read any more.
        """
        while start < stop:
            chunk = start // self._steps
            last = min(stop, (chunk + 1) * self._steps)
            yield self._take(epoch, chunk), self._batches, start, last
            start = last

    def _batches_of_chunks(self) -> jax.Array:
        """The batches of all epochs, as indices into chunks; padded as those of `order`."""
        members, steps, batch = self._shape
        rows = self._steps * batch
        firsts_S = np.arange(steps, dtype=np.int32) % self._steps * batch
        batches_SxB = firsts_S[:, None] + np.arange(batch, dtype=np.int32)
        firsts_M = np.arange(members, dtype=np.int32) * rows
        batches_MxSxB = firsts_M[:, None, None] + batches_SxB
        batches_MxSxB.reshape(members, -1)[:, self._source.shape[0] :] = members * rows
        batches = batches_MxSxB if members > 1 else batches_MxSxB[0]
        return self._devices.cut(batches, members * rows)

    def _take(self, epoch: int, chunk: int) -> jax.Array:
        at = epoch, chunk
        if self._chunk is None or self._chunk[0] != at:
            self._chunk = None
            if self._ahead is None or self._ahead[0] != at:
                self._begin(at)
            assert self._ahead is not None
            self._chunk = at, self._ahead[1].result()
            self._ahead = None
            if (chunk + 1) * self._steps < self._shape[1]:
                self._begin((epoch, chunk + 1))
            elif epoch < self._epochs:
                self._begin((epoch + 1, 0))
        return self._chunk[1]

    def _begin(self, at: tuple[int, int]) -> None:
        self._ahead = at, self._thread.submit(self._read, *at)

    @settings.ours()
    def _read(self, epoch: int, chunk: int) -> jax.Array:
        """Reads a chunk to the device."""
        members, _, batch = self._shape
        if epoch != self._epoch:
            order = np.asarray(self._order(self._key, np.int32(epoch)))
            self._epoch, self._order_MxSxB = epoch, order.reshape(self._shape)
        count = self._source.shape[0]
        rows = np.full((members, self._steps, batch), count)
        some = self._order_MxSxB[:, chunk * self._steps :][:, : self._steps]
        own_B = self._devices.own(batch)  # those of other processes stay what they are
        rows[:, : some.shape[1], own_B] = some[..., own_B]
        rows = rows.ravel()
        places = np.flatnonzero(rows < count)
        wanted = rows[places]
        if rows[-1] == count:  # the image to which indices beyond all are clipped
            wanted, places = np.append(wanted, count - 1), np.append(places, len(rows) - 1)
        images = self._source.read(wanted, places, len(rows))
        return jax.block_until_ready(self._devices.put(images))
