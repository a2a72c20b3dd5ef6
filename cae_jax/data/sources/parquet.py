"""Reads parquet files with a column of encoded images, as Hugging Face publishes them."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cae_jax.data.files import UnreadableError, open_image
from cae_jax.data.sources import (
    ALL,
    File,
    Item,
    Listing,
    Source,
    listed,
    named_split,
    numbered_classes,
    splits_of,
)
from cae_jax.errors import UserError, installing, naming

SUFFIX = ".parquet"
# Writes what `datasets` saved to disk, one set or several by their splits, as parquet files.
CONVERT = (
    'python -c "import datasets, os; d = datasets.load_from_disk({0!r}); '
    "os.makedirs({0!r} + '_parquet'); "
    "[x.to_parquet({0!r} + '_parquet/' + n + '.parquet') for n, x in "
    "(d.items() if isinstance(d, dict) else [('all', d)])]\""
)
_ROWS = 16  # rows that are in memory at once
_BUFFER = 2**20  # bytes of a column, which would otherwise be read whole for a group of rows
_IMAGES = ("image", "img", "pixel_values", "picture", "photo", "jpg", "png")
_LABELS = ("label", "labels", "fine_label", "class", "target")


def open_folder(listing: Listing, pairs: Sequence[str] = ()) -> Source:
    """The images of parquet files in their order.

    The splits are in the names: ``data/train-00000-of-00001.parquet``, ``test/0000.parquet``. With
    `pairs` the images are in two columns of these names, inputs and targets.

    Raises:
        UserError: pyarrow is missing, a damaged file, or no column of images.
    """
    splits = splits_of(
        _by_split(listing),
        listing.root,
        lambda files: listed(file.key for file in files),
        (part for file in listing.with_suffix([SUFFIX]) for part in file.parts),
    )
    used = [file for files in splits.values() for file in files]
    notes = {"ignored": listing.unused(used)}
    count = sum(_opened(listing.root, file).metadata.num_rows for file in used)
    if pairs:
        columns = {
            split: partial(_pairs, listing.root, files, pairs) for split, files in splits.items()
        }
        return Source(columns, (), notes, count, encoded=True)
    schema = _opened(listing.root, used[0]).schema_arrow
    features = _features(schema)
    image = _column_of_images(schema, features, listing.root / used[0].key)
    label = _column_of_labels(schema, features)
    classes: tuple[str, ...] = ()
    if label and not (classes := _class_names(features.get(label, {}))):
        rows = (row for file in used for row in _rows(listing.root, file, [label]))
        labels = [-1 if row[label] is None else row[label] for row in rows]
        classes = numbered_classes([np.array(labels)])
    columns = [image, label] if label and classes else [image]
    items = {
        split: partial(_items, listing.root, files, columns) for split, files in splits.items()
    }
    return Source(items, classes, notes, count, encoded=True)


def _items(root: Path, files: list[File], columns: list[str]) -> Iterator[Item]:
    """The images of a split, from the columns of images and of labels."""
    for file in files:
        for i, row in enumerate(_rows(root, file, columns)):
            name = f"{root / file.key}[{i}]"
            image, label = row[columns[0]], row[columns[1]] if len(columns) > 1 else None
            if len(columns) > 1 and label is None:
                label = -1  # as TFDS and `datasets` mark what has no label
            if not isinstance(label, int | None):
                raise UserError(f"{name} has the label {label!r}, no whole number; give it")
            yield Item(f"{file.key}[{i}]", name, partial(_read, image, name), label)


def _pairs(root: Path, files: list[File], names: Sequence[str]) -> Iterator[Item]:
    """The images of a split, from the columns of inputs and of targets."""
    for file in files:
        for i, row in enumerate(_rows(root, file, list(names))):
            key = f"{file.key}[{i}]"
            given, target = (
                Item(key, f"{root / key} ({name})", partial(_read, row[name], f"{root / key}"))
                for name in names
            )
            yield target._replace(input=given)


def _rows(root: Path, file: File, columns: list[str]) -> Iterator[dict[str, Any]]:
    opened = _opened(root, file)
    names = opened.schema_arrow.names
    if any(names.count(column) != 1 for column in columns):
        raise UserError(
            f"{root / file.key} has the columns {', '.join(names)}; it takes "
            f"{' and '.join(columns)} once, as the others: give files of one data set"
        )
    with _naming(root / file.key):
        for batch in opened.iter_batches(batch_size=_ROWS, columns=columns):
            yield from batch.to_pylist()


def _opened(root: Path, file: File) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{root} holds parquet files, which take pyarrow", installing("parquet")
        ) from error
    with _naming(root / file.key):
        return parquet.ParquetFile(root / file.key, pre_buffer=False, buffer_size=_BUFFER)


def _naming(path: Path) -> Any:
    return naming(path, "an intact parquet file", "get it again from its source")


def _column_of_images(schema: Any, features: dict[str, Any], path: Path) -> str:
    """The name of the column of images: by its declared type, by its name, or by its form."""
    import pyarrow as pa

    encoded = [
        field.name
        for field in schema
        if (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
        or pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
    ]
    declared = [name for name in encoded if features.get(name, {}).get("_type") == "Image"]
    named = [name for name in _IMAGES if name in (declared or encoded)]
    chosen = named or declared or encoded
    if not chosen:
        raise UserError(
            f"{path} has the columns {', '.join(schema.names)}; it takes one of encoded images, "
            "such as image with bytes: give another folder"
        )
    if len(chosen) > 1 and not named:
        raise UserError(
            f"{path} has several columns of images, {', '.join(chosen)}; name one image, or "
            f"give inputs and targets as `pairs=('{chosen[0]}', '{chosen[1]}')`"
        )
    return chosen[0]


def _class_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """The names of the labels in a feature of the `datasets` library; () without any."""
    names = feature.get("names")
    names = tuple(map(str, names)) if isinstance(names, list) else ()
    return names if len(set(names)) == len(names) else ()


def _read(image: Any, name: str) -> Any:
    """Opens an image: bytes, or a struct with them."""
    content = image.get("bytes") if isinstance(image, dict) else image
    if not content or not isinstance(content, bytes):  # a text would be opened as a path
        raise UnreadableError(f"{name} is not a readable image (the row has no bytes)", "add them")
    return open_image(content, name)


def _features(schema: Any) -> dict[str, Any]:
    """The features that the `datasets` library keeps in a schema; {} without any."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: each for name, each in features.items() if isinstance(each, dict)}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _column_of_labels(schema: Any, features: dict[str, Any]) -> str | None:
    """The name of the column of labels; None without one."""
    import pyarrow as pa

    whole = [field.name for field in schema if pa.types.is_integer(field.type)]
    declared = [name for name in whole if features.get(name, {}).get("_type") == "ClassLabel"]
    named = [name for name in _LABELS if name in whole]
    return next(iter([*named, *declared]), None)


def _by_split(listing: Listing) -> dict[str, list[File]]:
    """The files of each split, of one data set."""
    found: dict[str, list[File]] = {}
    homes = set()
    for file in listing.with_suffix([SUFFIX]):
        splits = [split for part in file.parts if (split := named_split(part))]
        found.setdefault(splits[-1] if splits else ALL, []).append(file)
        homes.add("/".join(part for part in file.parts[:-1] if not named_split(part)))
    if len(homes) > 1:
        raise UserError(
            f"{listing.root} has parquet files of several data sets; give one of the folders "
            f"{', '.join(sorted(home or '.' for home in homes))}"
        )
    return found
