"""Reads images from .npy and .npz files, which are never unpickled."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cae_jax.config import Shape
from cae_jax.data.conversion import check_shape
from cae_jax.data.sources import (
    ALL,
    MAX_CLASSES,
    SPLIT_NAMES,
    Item,
    numbered_classes,
    splits_of,
)
from cae_jax.errors import UserError, naming

# Of several arrays of whole numbers, the one with such a name has the labels.
_LABEL_NAMES = re.compile(r"label|target|class|(^|_)y(_|$)", re.IGNORECASE)


class _Array(NamedTuple):
    """The header of an array in a file: its name there, "" in a .npy file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


class ArrayFile:
    """The images of a .npy or .npz file in their order; a `cae_jax.data.sources.Source`.

    Images are arrays of three or four dimensions, labels whole numbers with the same first axis:
    ``train_images`` and ``train_labels``, ``x_test`` and ``y_test``, or a single array.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._naming():
            arrays = list(_headers(path))
            usable = [array for array in arrays if not array.dtype.hasobject]
            if arrays and not usable:
                raise ValueError("it holds Python objects, which are never unpickled")
        flat = [array for array in usable if len(array.shape) == 2 and not _is_label(array)]
        self._images = self._chosen([array for array in usable if len(array.shape) > 2] or flat)
        labels = _labels_by_split([array for array in usable if _is_label(array)])
        self._names = splits_of(self._images, path)
        self.splits = tuple(self._names)
        shapes = {
            check_shape(self._images[split].shape, self._title(self._images[split]))
            for split in self._names.values()
        }
        if len(shapes) > 1:
            raise UserError(f"{path} has images of the shapes {sorted(shapes)}; it takes one shape")
        self.shape: Shape | None = shapes.pop()
        self._labels = self._read_labels(labels)
        self.classes = numbered_classes(self._labels.values())
        used = {
            found[split].name
            for found in (self._images, labels)
            for split in self._names.values()
            if split in found
        }
        others = sorted({array.name for array in arrays} - used)
        self.notes: dict[str, Any] = {"ignored": dict.fromkeys(others, 1)} if others else {}

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split."""
        array, labels = self._images[self._names[split]], self._labels.get(split)
        title = self._title(array)
        for i, image in enumerate(self._read(array)):
            label = None if labels is None else int(labels[i])
            yield Item(f"{array.name}[{i}]", f"{title}[{i}]", lambda image=image: image, label)

    def _title(self, array: _Array) -> str:
        return f"{self._path}: {array.name}" if array.name else str(self._path)

    def _naming(self) -> Any:
        kind = f"a readable {self._path.suffix[1:]} file"
        return naming(self._path, kind, "save it again with numpy")

    def _chosen(self, arrays: list[_Array]) -> dict[str, _Array]:
        """The arrays of images by their splits."""
        found: dict[str, _Array] = {}
        for array in arrays:
            split = _split_name(array.name)
            if split in found:
                raise UserError(
                    f"{self._path} has several arrays of images, {found[split].name} "
                    f"{list(found[split].shape)} and {array.name} {list(array.shape)}; save one, "
                    "or name them train_images and test_images"
                )
            found[split] = array
        if not found:
            raise UserError(
                f"{self._path} has no array of images; it takes [N, H, W] or [N, H, W, C], such as "
                "train_images and test_images"
            )
        return found

    def _read_labels(self, arrays: dict[str, _Array]) -> dict[str, np.ndarray]:
        """The labels of the splits; {} if a split has none or several for each image."""
        labels = {}
        for split, name in self._names.items():
            if name not in arrays:
                return {}
            array, images = arrays[name], self._images[name]
            if array.shape[0] != images.shape[0]:
                raise UserError(
                    f"{self._path} has {images.shape[0]} images in {images.name} and "
                    f"{array.shape[0]} labels in {array.name}; save as many of both"
                )
            values = self._read(array).reshape(-1)
            if values.min() < 0 or values.max() >= MAX_CLASSES:
                return {}
            labels[split] = values
        return labels

    def _read(self, array: _Array) -> np.ndarray:
        """An array, mapped to memory; a member of a .npz file is read whole."""
        with self._naming():
            if self._path.suffix.lower() == ".npy":
                return _mapped(self._path)
            with np.load(self._path, allow_pickle=False) as archive:
                return archive[f"{array.name}.npy"]


def _labels_by_split(arrays: list[_Array]) -> dict[str, _Array]:
    """The labels of each split: of several arrays the one with the name of labels, if any."""
    found: dict[str, list[_Array]] = {}
    for array in arrays:
        found.setdefault(_split_name(array.name), []).append(array)
    chosen = {
        split: [array for array in several if _LABEL_NAMES.search(array.name)] or several
        for split, several in found.items()
    }
    return {split: several[0] for split, several in chosen.items() if len(several) == 1}


def _is_label(array: _Array) -> bool:
    """Whether an array holds one whole number for each image."""
    single = len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] == 1)
    return single and array.dtype.kind in "iu" and array.shape[0] > 0


def _split_name(name: str) -> str:
    """The split in the name of an array; `all` if it has none."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[xy])_?(?=train|test|val)", "_", name.lower()))
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), ALL)


def _mapped(path: Path) -> np.ndarray:
    """A .npy file as an array; `numpy.load` would leave one open that begins as a zip archive."""
    return np.lib.format.open_memmap(path, mode="r")


def _headers(path: Path) -> Iterator[_Array]:
    """Shapes and types of the arrays in a file, of which a .npz file is not read."""
    if path.suffix.lower() == ".npy":
        array = _mapped(path)
        yield _Array("", array.shape, array.dtype)
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read: Any = np.lib.format.read_array_header_1_0
                    if version > (1, 0):
                        read = np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(file)
                    yield _Array(member.removesuffix(".npy"), shape, dtype)
