"""Converts the images of a source and writes them as .npy files, in one pass."""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from cae_jax.config import TrainConfig
from cae_jax.data.conversion import Conversion, values_of
from cae_jax.data.files import UnreadableError, frames, further_frames, header
from cae_jax.data.pixels import (
    WHITE,
    RangeError,
    Statistics,
    check_shape,
    check_size,
    spanned,
)
from cae_jax.data.sources import ALL, SPLITS, Item, Source, split_of
from cae_jax.errors import UserError

logger = logging.getLogger(__name__)

MAX_NAMES = 1000  # of files left out, which are recorded


def write(folder: Path, source: Source, config: TrainConfig, title: str) -> dict[str, Any]:
    """Writes the images and labels of a source, and logs a line.

    Args:
        folder: for ``SPLIT_images.npy`` and ``SPLIT_labels.npy``.
        source, title: of the images, and how messages name them.
        config: what they are converted to.

    Returns:
        the record of the arrays, see `cae_jax.data.prepared`.

    Raises:
        UserError: an unreadable image, unless the config skips them; images of several sizes; a
            split without images; or images that are black because their white is 1.
    """
    if config.white == "auto":
        config = dataclasses.replace(config, levels=_levels(source, config, title))
    preparation = _Preparation(source, config, title)
    try:
        record = preparation.write(folder)
    except _ColorError:  # rare: gray images come first, and all of them become RGB
        preparation = _Preparation(source, dataclasses.replace(config, channels=3), title)
        record = preparation.write(folder)
    skipped, ignored = record["skipped"], source.notes.get("ignored", {})
    left_out = [f"{skipped} unreadable"] if skipped else []
    left_out += [f"{count} {name}" for name, count in ignored.items()]
    left_out += [f"{record['frames']} further frames"] if record["frames"] else []
    shapes = {name: shape for name, (_, shape) in record["arrays"].items()}
    train, test = shapes["train_images"], shapes["test_images"]
    validation = shapes.get("validation_images")
    *size, channels = max(train, test, key=len)[1:]  # one of them may be empty
    logger.warning(
        "Prepared %d training%s and %d test %s of %d x %d x %d, %s%s",
        train[0],
        f", {validation[0]} validation" if validation else "",
        test[0],
        *("pairs" if config.pairs else "images", *size),
        channels // 2 if config.pairs else channels,
        " and ".join(map(str, preparation.statistics)),
        f"; left out: {', '.join(left_out)}" if left_out else "",
    )
    for doubt in filter(None, (each.doubt for each in preparation.statistics)):
        logger.warning(doubt)
    return record


def _levels(source: Source, config: TrainConfig, title: str) -> tuple[float, float] | None:
    """The smallest and the largest value of the training images, by an additional pass."""

    def values() -> Iterator[np.ndarray]:
        items = _items(source, "train", config.split)
        for item in (one for pair in items for one in (pair, pair.input) if one):
            with contextlib.suppress(UnreadableError), _opened(item) as image:  # `write` names it
                for frame in frames(image, config.frames, item.name):
                    yield values_of(frame, item.name, config.max_pixels)

    if (found := spanned(values())) is None:
        return None
    low, high = found
    if not low < high:
        raise UserError(f"{title} has training images of values {low:g} to {high:g}; give others")
    return low, high


def _items(source: Source, split: str, fraction: float) -> Iterator[Item]:
    """The images of a split."""
    if ALL not in source.items:
        return source.items[split]()
    return (item for item in source.items[ALL]() if split_of(item.key, fraction) == split)


@contextlib.contextmanager
def _opened(item: Item) -> Iterator[Image.Image | np.ndarray]:
    image = item.read()
    with image if isinstance(image, Image.Image) else contextlib.nullcontext():
        yield image


class _ColorError(Exception):
    """An image has colors after the first one was gray."""


class _Preparation:
    """One pass over the images of a source; arguments as of `write`.

    Without a size (None) or channels (0) the first image decides, and the others have to agree.
    """

    def __init__(self, source: Source, config: TrainConfig, title: str) -> None:
        self._config, self._source, self._title = config, source, title
        channels = 0 if config.channels == "auto" else config.channels
        self._convert = Conversion.from_config(config, config.image_size, channels)
        self._ask = self._convert.size is None, not self._convert.channels
        self._first = title
        self._skipped: list[str] = []
        self._further_frames = 0
        sides = ("targets", "inputs") if config.pairs else ("",)
        self.statistics = [Statistics(side) for side in sides]

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes the arrays of all splits; returns their record."""
        arrays: dict[str, Any] = {}
        images, labels = hashlib.sha256(), hashlib.sha256()
        whole = ALL in self._source.items
        for split in SPLITS[:2] if whole else [s for s in SPLITS if s in self._source.items]:
            found: list[int | None] = []
            with (folder / f"{split}_images.npy").open("wb") as file:
                shape = _write(file, self._converted(split, found), images)
            arrays[f"{split}_images"] = "uint8", shape
            if self._source.classes:
                values = np.array(found, np.int32)
                labels.update(values)
                np.save(folder / f"{split}_labels.npy", values)
                arrays[f"{split}_labels"] = "int32", values.shape
        if not any(shape[0] for _, shape in arrays.values()):
            left_out = f", {len(self._skipped)} unreadable ones left out" if self._skipped else ""
            raise UserError(f"{self._title} gives no training images{left_out}", "give more images")
        return {
            "data": self._title,
            "arrays": arrays,
            "sha256": {"images": images.hexdigest(), "labels": labels.hexdigest()},
            "classes": self._source.classes,
            "divided": whole,
            "skipped": len(self._skipped),
            "skipped_files": self._skipped[:MAX_NAMES],
            "frames": self._further_frames,
            "levels": self._config.levels,
            **self._source.notes,
        }

    def _converted(self, split: str, labels: list[int | None]) -> Iterator[np.ndarray]:
        """The converted images of a split, whose labels it appends."""
        classes = len(self._source.classes)
        for item in _items(self._source, split, self._config.split):
            if item.label is not None and classes and not -1 <= item.label < classes:
                raise UserError(
                    f"{item.name} has the label {item.label}, and there are {classes} classes; "
                    "correct the source"
                )
            try:
                for converted in list(self._frames(item)):  # all frames of a file, or none
                    labels.append(item.label)
                    sides = np.split(converted, len(self.statistics), axis=-1)
                    for statistics, side in zip(self.statistics, sides, strict=True):
                        statistics.add(side)
                    yield converted
            except UnreadableError as error:
                if not self._config.skip_unreadable:
                    advice = f"{error.advice}, remove it, or pass `skip_unreadable=True`"
                    raise UnreadableError(error.problem, advice) from error
                self._skipped.append(item.name)
            except RangeError as error:
                raise RangeError(error.problem, WHITE) from error
        for statistics in self.statistics:
            statistics.check(self._title)

    def _frames(self, item: Item) -> Iterator[np.ndarray]:
        """The converted image, or all of its frames; of pairs, with the channels of the input."""
        if item.input is None:
            yield from self._alone(item)
        else:
            sides = self._alone(item), self._alone(item.input)
            for target, given in itertools.zip_longest(*sides):
                if target is None or given is None:
                    raise UserError(
                        f"{item.name} and {item.input.name} have different numbers of frames",
                        "pass `frames='first'`, or leave them out with `exclude`",
                    )
                yield np.concatenate([target, given], axis=-1)

    def _alone(self, item: Item) -> Iterator[np.ndarray]:
        with _opened(item) as image:
            for frame in frames(image, self._config.frames, item.name):
                self._agree(frame, item.name)
                yield self._convert(frame, item.name)
            if self._config.frames == "first":
                with contextlib.suppress(UnreadableError):  # of a frame that is left out
                    self._further_frames += further_frames(image, item.name)

    def _agree(self, image: Image.Image | np.ndarray, name: str) -> None:
        """Keeps the size and channels of the first image; refuses others."""
        if isinstance(image, np.ndarray):
            check_shape((1, *image.shape), name)
        if not any(self._ask):
            return
        (ask_size, ask_channels), to = self._ask, self._convert
        size, channels = header(image, name)
        if to.size is None:
            check_size(size, name)
            self._first = name
        elif ask_size and size != to.size:
            raise UserError(
                f"{self._first} has {to.size[0]} x {to.size[1]} pixels and {name} {size[0]} x "
                f"{size[1]}",
                "bring all to one size with `image_size=64`, for example",
            )
        if ask_channels and to.channels == 1 < channels:
            raise _ColorError
        self._convert = to._replace(size=to.size or size, channels=to.channels or channels)


def _write(file: IO[bytes], images: Iterator[np.ndarray], digest: Any) -> tuple[int, ...]:
    """Writes images to a .npy file one after the other, and updates a digest.

    Returns:
        the shape of the array, ``(0,)`` without images.
    """
    shape: tuple[int, ...] = (0,)
    for i, image in enumerate(images):
        shape = (i + 1, *image.shape)
        if not i:
            _write_header(file, shape)
        content = image.tobytes()
        file.write(content)
        digest.update(content)
    file.seek(0)  # NumPy pads headers so that the first axis may grow
    _write_header(file, shape)
    return shape


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    values = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, values)
