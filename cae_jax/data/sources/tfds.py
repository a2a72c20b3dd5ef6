"""Reads image data sets that TensorFlow Datasets has prepared, without TensorFlow."""

import itertools
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cae_jax.data.files import reading
from cae_jax.data.sources import (
    ALL,
    SPLITS,
    File,
    Item,
    Listing,
    Source,
    listed,
    named_split,
    splits_of,
)
from cae_jax.errors import UserError, naming, reason_of

logger = logging.getLogger(__name__)

# The files that every prepared data set has, beside its records.
MARKS = ("dataset_info.json", "features.json")
_RECORDS = 32  # records that are read in one call


def open_folder(folder: Path, chosen: str) -> Source:
    """The images of a prepared data set in their order.

    Args:
        folder: the one with ``dataset_info.json``.
        chosen: the training images, or training, test and perhaps validation images with commas
            between, in TFDS's notation: ``train[:90%]``, ``train[:90%],train[90%:]``. "" takes the
            splits that the data set has, as do those that are not given.

    Raises:
        UserError: records that only TensorFlow reads, no images, or an unknown split.
    """
    import tensorflow_datasets as tfds

    with _naming(folder):
        builder: Any = tfds.builder_from_directory(folder)
    form = builder.info.file_format.value
    if form not in ("array_record", "parquet"):
        raise UserError(
            f"{folder} holds {form} files, which only TensorFlow reads; prepare the data set with "
            "file_format array_record or parquet"
        )
    splits = {
        split: _slices(builder, name, folder, chosen)
        for split, name in _names(builder, folder, chosen).items()
    }
    if ALL not in splits:
        _warn_of_overlap(splits, f"{folder}::{chosen}")
    image, label = _features(builder.info.features, folder)
    items = {
        split: partial(_items, builder, folder, slices, image, label)
        for split, slices in splits.items()
    }
    feature = builder.info.features[label] if label else None
    classes = feature and (feature.names or map(str, range(feature.num_classes or 0)))
    used = {name for slices in splits.values() for name, _ in slices}
    others = {f"of {n}": each.num_examples for n, each in builder.info.splits.items()}
    ignored = {} if chosen else {n: count for n, count in others.items() if n[3:] not in used}
    count = sum(len(images) for slices in splits.values() for _, images in slices)
    return Source(items, tuple(classes or ()), {"ignored": ignored}, count)


def _warn_of_overlap(splits: dict[str, list[tuple[str, range]]], title: str) -> None:
    for name in SPLITS[1:]:
        for (one, a), (other, b) in itertools.product(splits["train"], splits.get(name, [])):
            if one == other and range(max(a.start, b.start), min(a.stop, b.stop)):
                logger.warning("%s trains on %s images, of %s", title, name, one)


def _names(builder: Any, folder: Path, chosen: str) -> dict[str, str]:
    """What each split takes of the data set, in TFDS's notation."""
    names = list(builder.info.splits)
    own: dict[str, str] = {}
    for name in sorted(names, key=len):  # test before test2015
        if split := named_split(name):
            own.setdefault(split, name)
    if not chosen:
        return splits_of(own or dict(zip(names, names, strict=True)), folder, names=names)
    parts: dict[str, str] = dict(zip(SPLITS, chosen.split(",", 2), strict=False))
    # A slice of the test images has none beside it, and is split itself.
    if len(parts) == 1 and not chosen.startswith(own.get("test", ",")):
        others = {split: name for split, name in own.items() if not chosen.startswith(name)}
        parts = others | parts
    return splits_of(parts, folder)


def _slices(builder: Any, name: str, folder: Path, chosen: str) -> list[tuple[str, range]]:
    """The images of a part of the data set: splits, and ranges of images there."""
    import tensorflow_datasets as tfds

    infos = dict(builder.info.splits)
    counts = {name: info.num_examples for name, info in infos.items()}
    try:
        parts: Any = tfds.core.ReadInstruction.from_spec(name).to_absolute(infos)
        slices = [
            (part.splitname, range(counts[part.splitname])[part.from_ : part.to]) for part in parts
        ]
    except Exception as error:  # of any type, too
        raise UserError(
            f"{folder}::{chosen} names no part of the data set ({reason_of(error)}); it has "
            f"{', '.join(f'{name} ({count})' for name, count in counts.items())}: write "
            "::train[:90%], or ::train[:90%],train[90%:] for training and test images"
        ) from error
    if not any(images for _, images in slices):
        raise UserError(f"{folder}::{chosen} holds no images; give a larger part")
    return slices


def _items(
    builder: Any, folder: Path, slices: list[tuple[str, range]], image: str, label: str | None
) -> Iterator[Item]:
    """The images of a split."""
    for split, images in slices:
        with _naming(folder):
            records = builder.as_data_source(split)
        for start in range(0, len(images), _RECORDS):
            block = images[start : start + _RECORDS]
            for i, example in zip(block, _examples(records, block), strict=True):
                key, name = f"{split}[{i}]", f"{folder}: {split}[{i}]"
                known = None if isinstance(example, Exception) or not label else int(example[label])
                yield Item(key, name, partial(_image, example, image, name), known)


def _examples(records: Any, block: range) -> list[Any]:
    """The examples of a block; an exception in place of one that cannot be read."""
    try:
        return records.__getitems__(block)
    except Exception as error:
        if len(block) == 1:
            return [error]
        return [_examples(records, block[i : i + 1])[0] for i in range(len(block))]


def _image(example: Any, feature: str, name: str) -> np.ndarray:
    with reading(name):
        if isinstance(example, Exception):
            raise example
        return np.asarray(example[feature])


def _naming(folder: Path) -> Any:
    return naming(folder, "an intact TFDS data set", "prepare it again")


def find_folder(listing: Listing) -> Path | None:
    """The folder with the marks of a prepared data set: the one given, or the one in it.

    Raises:
        UserError: several are in it, such as versions of a data set.
    """
    parents: dict[str, set[str]] = {mark: set() for mark in MARKS}
    for file in listing.files:
        if file.key.endswith(MARKS):
            parent, _, name = file.key.rpartition("/")
            parents.get(name, set()).add(parent)
    folders = set.intersection(*parents.values())
    if "" in folders:
        return listing.root
    if len(folders) > 1:
        raise UserError(
            f"{listing.root} has {len(folders)} data sets of TFDS, in {listed(folders)}; give the "
            "folder of one"
        )
    return listing.root / folders.pop() if folders else None


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
