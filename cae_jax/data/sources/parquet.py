"""Reads parquet files with a column of encoded images, as Hugging Face publishes them."""

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from cae_jax.config import Shape
from cae_jax.data.conversion import UnreadableError, open_image
from cae_jax.data.sources import (
    ALL,
    MAX_CLASSES,
    SPLIT_NAMES,
    File,
    Item,
    Listing,
    splits_of,
)
from cae_jax.errors import UserError, naming

SUFFIX = ".parquet"
_ROWS = 64  # rows that are in memory at once
_IMAGES = ("image", "img", "pixel_values", "picture", "photo", "jpg", "png")
_LABELS = ("label", "labels", "fine_label", "class", "target")


class ParquetFolder:
    """The images of parquet files in their order; a `cae_jax.data.sources.Source`.

    The splits are in the names: ``data/train-00000-of-00001.parquet``, ``test/0000.parquet``.

    Raises:
        UserError: pyarrow is missing, a damaged file, or no column of images.
    """

    def __init__(self, listing: Listing) -> None:
        self._root = listing.root
        self.shape: Shape | None = None
        self._files = _by_split(listing)
        self._names = splits_of(self._files, listing.root)
        self.splits = tuple(self._names)
        first = next(iter(self._files.values()))[0]
        schema = self._open(first).schema_arrow
        self._path = f"{self._root / first.key}"
        features = _features(schema)
        self._image = self._column_of_images(schema, features)
        self._label = _column_of_labels(schema, features)
        self.classes = self._class_names(features)
        used = [file for files in self._files.values() for file in files]
        self.notes: dict[str, Any] = {"ignored": listing.unused(used)}

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split."""
        for file in self._files[self._names[split]]:
            row, columns = 0, [name for name in (self._image, self._label) if name]
            for batch in self._batches(file, columns):
                images, *labels = (batch.column(name).to_pylist() for name in columns)
                labels = labels[0] if labels else [None] * len(images)
                for image, label in zip(images, labels, strict=True):
                    name = f"{self._root / file.key}[{row}]"
                    if self._label and label is None:
                        label = -1  # as TFDS and `datasets` mark what has no label
                    if not isinstance(label, int | None):
                        raise UserError(f"{name} has the label {label!r}, no whole number; give it")
                    yield Item(f"{file.key}[{row}]", name, partial(_read, image, name), label)
                    row += 1

    def _batches(self, file: File, columns: list[str]) -> Iterator[Any]:
        opened = self._open(file)
        names = opened.schema_arrow.names
        if any(names.count(column) != 1 for column in columns):
            raise UserError(
                f"{self._root / file.key} has the columns {', '.join(names)}, and {self._path} "
                f"{' and '.join(columns)} once; give files of one data set"
            )
        with self._naming(file):
            yield from opened.iter_batches(batch_size=_ROWS, columns=columns)

    def _open(self, file: File) -> Any:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise UserError(
                f"{self._root} holds parquet files, which take pyarrow; "
                'pip install "cae-jax[parquet]"'
            ) from error
        with self._naming(file):
            return parquet.ParquetFile(self._root / file.key)

    def _naming(self, file: File) -> Any:
        path = self._root / file.key
        return naming(path, "an intact parquet file", "get it again from its source")

    def _column_of_images(self, schema: Any, features: dict[str, Any]) -> str:
        """The name of the column of images: by its declared type, by its name, or by its form."""
        import pyarrow as pa

        forms = {field.name: field.type for field in schema}
        encoded = [
            name
            for name, form in forms.items()
            if (pa.types.is_struct(form) and form.get_field_index("bytes") >= 0)
            or pa.types.is_binary(form)
            or pa.types.is_large_binary(form)
        ]
        declared = [name for name in encoded if features.get(name, {}).get("_type") == "Image"]
        named = [name for name in _IMAGES if name in (declared or encoded)]
        chosen = named or declared or encoded
        if not chosen:
            raise UserError(
                f"{self._path} has the columns {', '.join(forms)}; it takes one of encoded images, "
                "such as image with bytes: give another folder"
            )
        return chosen[0]

    def _class_names(self, features: dict[str, Any]) -> tuple[str, ...]:
        """The names of the labels; their numbers where the files have no names."""
        if self._label is None:
            return ()
        names = features.get(self._label, {}).get("names")
        if names and isinstance(names, list) and len(set(map(str, names))) == len(names):
            return tuple(map(str, names))
        values = {
            value
            for files in self._files.values()
            for file in files
            for batch in self._batches(file, [self._label])
            for value in batch.column(self._label).to_pylist()
        }
        whole = values and all(isinstance(value, int) for value in values)
        if not whole or min(values) < 0 or max(values) >= MAX_CLASSES:
            self._label = None
            return ()
        return tuple(map(str, range(max(values) + 1)))


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
        *folders, name = [part.lower() for part in file.parts]
        word = re.split(r"[^a-z0-9]", name)[0]
        splits = [SPLIT_NAMES[part] for part in (*folders, word) if part in SPLIT_NAMES]
        found.setdefault(splits[-1] if splits else ALL, []).append(file)
        homes.add("/".join(part for part in file.parts[:-1] if part.lower() not in SPLIT_NAMES))
    if len(homes) > 1:
        raise UserError(
            f"{listing.root} has parquet files of several data sets; give one of the folders "
            f"{', '.join(sorted(home or '.' for home in homes))}"
        )
    return found
