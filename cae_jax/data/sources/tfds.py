"""Reads image data sets that TensorFlow Datasets has prepared, without TensorFlow."""

import itertools
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cae_jax.config import Shape
from cae_jax.data.conversion import UnreadableError, check_shape
from cae_jax.data.sources import ALL, SPLIT_NAMES, File, Item, Listing, splits_of
from cae_jax.errors import UserError, naming, reason_of

logger = logging.getLogger(__name__)

# The files that every prepared data set has, beside its records.
MARKS = ("dataset_info.json", "features.json")
_RECORDS = 200  # records that are read in one call


class _Slice(NamedTuple):
    """A part of a split of the data set, from the first to before the last."""

    split: str
    first: int
    last: int


class TfdsFolder:
    """The images of a prepared data set in their order; a `cae_jax.data.sources.Source`.

    Args:
        folder: the one with ``dataset_info.json``.
        chosen: the training images, or training and test images with a comma between, in TFDS's
            notation: ``train[:90%]``, ``train[:90%],train[90%:]``. "" takes the splits that the
            data set has.

    Raises:
        UserError: records that only TensorFlow reads, no images, or an unknown split.
    """

    def __init__(self, folder: Path, chosen: str) -> None:
        import tensorflow_datasets as tfds

        self._folder = folder
        with _naming(folder):
            self._builder: Any = tfds.builder_from_directory(folder)
        form = self._builder.info.file_format.value
        if form not in ("array_record", "parquet"):
            raise UserError(
                f"{folder} holds {form} files, which only TensorFlow reads; prepare the data set "
                "with file_format array_record or parquet"
            )
        self._parts = self._chosen(tfds, chosen)
        self._check_parts(chosen)
        self.splits = tuple(self._parts)
        self._image, self._label = _features(self._builder.info.features, folder)
        feature = self._builder.info.features
        self.classes = _class_names(feature[self._label]) if self._label else ()
        shape = feature[self._image].shape
        self.shape: Shape | None = (
            None if None in shape else check_shape((1, *shape), f"{folder}: {self._image}")
        )
        self.notes: dict[str, Any] = {}

    def _chosen(self, tfds: Any, chosen: str) -> dict[str, list[_Slice]]:
        """The slices of each split."""
        infos = dict(self._builder.info.splits)
        counts = {name: info.num_examples for name, info in infos.items()}
        own = {SPLIT_NAMES[name]: name for name in counts if name in SPLIT_NAMES} or {
            name: name for name in counts
        }
        if chosen:
            train, _, test = chosen.partition(",")
            test = test or own.get("test") or own.get("validation") or ""
            # A slice of the test images has none beside it, and is split itself.
            alone = not test or train.startswith(test)
            names = {ALL: train} if alone else {"train": train, "test": test}
        else:
            names = {key: own[name] for key, name in splits_of(own, self._folder).items()}
        try:
            return {
                split: [
                    _Slice(
                        part.splitname,
                        part.from_ or 0,
                        counts[part.splitname] if part.to is None else part.to,
                    )
                    for part in tfds.core.ReadInstruction.from_spec(name).to_absolute(infos)
                ]
                for split, name in names.items()
            }
        except Exception as error:  # of any type, too
            raise UserError(
                f"{self._folder}::{chosen} names no part of the data set "
                f"({reason_of(error)}); it has "
                f"{', '.join(f'{name} ({count})' for name, count in counts.items())}: write "
                "::train[:90%], or ::train[:90%],train[90%:] for training and test images"
            ) from error

    def _check_parts(self, chosen: str) -> None:
        """Refuses a part without images; warns of training images that are test images too."""
        for parts in self._parts.values():
            if not sum(max(0, part.last - part.first) for part in parts):
                raise UserError(f"{self._folder}::{chosen} holds no images; give a larger part")
        if ALL in self._parts:
            return
        for one, other in itertools.product(self._parts["train"], self._parts["test"]):
            if one.split == other.split and max(one.first, other.first) < min(one.last, other.last):
                logger.warning(
                    "%s::%s trains on test images, of %s", self._folder, chosen, one.split
                )

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split."""
        for part in self._parts[split]:
            with _naming(self._folder):
                records = self._builder.as_data_source(part.split)
            for start in range(part.first, part.last, _RECORDS):
                block = range(start, min(start + _RECORDS, part.last))
                for i, example in zip(block, self._read(records, block), strict=True):
                    name = f"{self._folder}: {part.split}[{i}]"
                    yield Item(f"{part.split}[{i}]", name, *self._opened(example, name))

    def _opened(self, example: Any, name: str) -> tuple[Any, int | None]:
        """How to read the image of an example, and its label."""
        if isinstance(example, Exception):
            return partial(_fail, name, example), None if self._label is None else 0
        label = None if self._label is None else int(example[self._label])
        return partial(np.asarray, example[self._image]), label

    def _read(self, records: Any, block: range) -> list[Any]:
        """The examples of a block; an exception in place of one that cannot be read."""
        try:
            return records.__getitems__(block)
        except Exception:  # of one of them
            return [_example(records, i) for i in block]


def _naming(folder: Path) -> Any:
    return naming(folder, "an intact TFDS data set", "prepare it again")


def _example(records: Any, i: int) -> Any:
    try:
        return records[i]
    except Exception as error:
        return error


def _fail(name: str, error: Exception) -> np.ndarray:
    problem = reason_of(error)
    raise UnreadableError(
        f"{name} is not a readable image ({problem})", "prepare the data set again"
    ) from error


def find_folder(listing: Listing) -> Path | None:
    """The folder with the marks of a prepared data set: the one given, or the one in it."""
    parents: dict[str, set[str]] = {mark: set() for mark in MARKS}
    for file in listing.files:
        if file.key.endswith(MARKS):
            parent, _, name = file.key.rpartition("/")
            parents.get(name, set()).add(parent)
    folders = set.intersection(*parents.values())
    if "" in folders:
        return listing.root
    return listing.root / folders.pop() if len(folders) == 1 else None


def files(listing: Listing) -> list[File]:
    """The files of a prepared data set."""
    return [
        file
        for file in listing.files
        if ".array_record" in file.key or ".parquet" in file.key or file.key.endswith(MARKS)
    ]


def _features(features: Any, folder: Path) -> tuple[str, str | None]:
    """The names of the image and of the label."""
    import tensorflow_datasets as tfds

    types: Any = tfds.features
    images = [name for name, each in features.items() if isinstance(each, types.Image)]
    images = images or [
        name
        for name, each in features.items()
        if isinstance(each, types.Tensor) and len(each.shape) in (2, 3)
    ]
    if len(images) != 1 and "image" not in images:
        found = f"several: {', '.join(images)}" if images else f"none among {', '.join(features)}"
        raise UserError(f"{folder} takes one image in each example, and has {found}; give another")
    labels = [name for name, each in features.items() if isinstance(each, types.ClassLabel)]
    label = "label" if "label" in labels else next(iter(labels), None)
    return "image" if "image" in images else images[0], label


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of the classes; their numbers where the data set has no names."""
    return tuple(feature.names or map(str, range(feature.num_classes or 0)))
