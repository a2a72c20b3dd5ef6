"""Reads images from .npy and .npz files, which are never unpickled."""

import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0

from cae_jax.data.pixels import check_shape
from cae_jax.data.sources import (
    ALL,
    Images,
    Item,
    Source,
    block_length,
    named_split,
    of_arrays,
    splits_of,
)
from cae_jax.errors import UserError, naming

# Of several arrays of whole numbers, the one with such a name has the labels.
_LABEL_NAMES = re.compile(r"label|target|class|(^|_)y(_|$)", re.IGNORECASE)


def open_file(path: Path, pairs: Sequence[str] = ()) -> Source:
    """The images of a .npy or .npz file in their order.

    Images are arrays of three or four dimensions, labels whole numbers with the same first axis:
    ``train_images`` and ``train_labels``, ``x_test`` and ``y_test``, or a single array. A .npy file
    is mapped to memory; one of a .npz file is unpacked while it is read. With `pairs` the arrays
    have these words in their names: of inputs and of targets.

    Raises:
        UserError: a damaged file, no images, or several arrays of images.
    """
    with _naming(path):
        if path.suffix.lower() == ".npy":  # `numpy.load` leaves one open that begins as an archive
            arrays = {"": np.lib.format.open_memmap(path, mode="r")}
        else:
            arrays = headers(path)
    if pairs:
        return _open_pairs(path, arrays, pairs)
    several = {name: array for name, array in arrays.items() if array.ndim > 2}
    flat = {name: a for name, a in arrays.items() if a.ndim == 2 and not _is_label(a)}
    images = splits_of(_images(several or flat, path), path, names=several or flat)
    labels = _labels(name for name, array in arrays.items() if _is_label(array))
    found, used = {}, set()
    for split, name in images.items():
        title = f"{path}: {name}" if name else str(path)
        check_shape(arrays[name].shape, title)
        label = labels.get(_split_name(name))
        used |= {name, label}
        found[split] = Images(
            lambda i, name=name: f"{name}[{i}]",
            title,
            len(arrays[name]),
            partial(blocks, path, name),
            None if label is None else member(path, label).reshape(-1),
        )
    others = sorted(arrays.keys() - used)
    return of_arrays(found, {"ignored": dict.fromkeys(others, 1)} if others else {})


def _open_pairs(path: Path, arrays: Mapping[str, np.ndarray], pairs: Sequence[str]) -> Source:
    """The pairs of images at the same places of two arrays."""
    sides = []
    for word in pairs:
        has_word = re.compile(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", re.IGNORECASE)
        named = {name: array for name, array in arrays.items() if has_word.search(name)}
        if not named:
            raise UserError(
                f"{path} has no array {word}, only {', '.join(filter(None, arrays)) or 'one'}",
                "`pairs` takes the names of two arrays in a .npz file",
            )
        sides.append(splits_of(_images(named, path), path, names=named))
    inputs, targets = sides
    if inputs.keys() != targets.keys() or any(
        len(arrays[inputs[split]]) != len(arrays[targets[split]]) for split in inputs
    ):
        shapes = [f"{name} {list(arrays[name].shape)}" for x in sides for name in x.values()]
        raise UserError(f"{path} has {', '.join(shapes)}; save as many inputs as targets")

    def items(split: str) -> Iterator[Item]:
        both = [
            Images(lambda i: f"[{i}]", f"{path}: {name}", 0, partial(blocks, path, name), None)
            for name in (inputs[split], targets[split])
        ]
        for given, target in zip(*(images.items(False) for images in both), strict=True):
            yield target._replace(input=given)

    others = sorted(arrays.keys() - {*inputs.values(), *targets.values()})
    notes = {"ignored": dict.fromkeys(others, 1)} if others else {}
    count = sum(len(arrays[name]) for name in inputs.values())
    return Source({split: partial(items, split) for split in inputs}, (), notes, count)


def headers(path: Path) -> dict[str, np.ndarray]:
    """Arrays without content, of the shapes and types of those in a .npz file.

    Those of Python objects have no shape, so that they are not taken for images.
    """
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.endswith(".npy"):
                with archive.open(entry) as file:
                    shape, _, dtype = _header(file)
                empty, name = np.empty((), dtype), entry.removesuffix(".npy")
                found[name] = empty if dtype.hasobject else np.broadcast_to(empty, shape)
    if found and all(array.dtype.hasobject for array in found.values()):
        raise ValueError("it holds Python objects, which are never unpickled")
    return found


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape, whether it is in Fortran's order, and the type of an array in a file."""
    old = np.lib.format.read_magic(file) == (1, 0)
    return (read_array_header_1_0 if old else read_array_header_2_0)(file)


def blocks(path: Path, name: str) -> Iterator[np.ndarray]:
    """An array in a file, one part after the other."""
    if path.suffix.lower() == ".npy":  # mapped again for each, so that memory is freed
        with _naming(path):
            mapped = np.lib.format.open_memmap(path, mode="r")
            length = block_length(mapped.shape, mapped.dtype)
        for start in range(0, len(mapped), length):
            yield np.asarray(np.lib.format.open_memmap(path, mode="r")[start : start + length])
        return
    with (
        _naming(path),
        zipfile.ZipFile(path) as archive,
        archive.open(f"{name}.npy") as file,
    ):
        shape, fortran, dtype = _header(file)
        if fortran:  # whose first image lies in the whole file
            yield member(path, name)
            return
        length = block_length(shape, dtype)
        for start in range(0, shape[0], length):
            block = (min(length, shape[0] - start), *shape[1:])
            content = file.read(math.prod(block) * dtype.itemsize)
            yield np.frombuffer(content, dtype).reshape(block)
        if file.read(1):  # reaches the end, where the archive verifies its checksum
            raise ValueError(f"{name} has bytes after its {shape[0]} elements")


def member(path: Path, name: str) -> np.ndarray:
    """An array in a .npz file, whole."""
    with _naming(path), np.load(path, allow_pickle=False) as archive:
        return archive[f"{name}.npy"]


def _naming(path: Path) -> AbstractContextManager[None]:
    return naming(path, f"a readable {path.suffix[1:]} file", "save it again with numpy")


def _images(arrays: dict[str, np.ndarray], path: Path) -> dict[str, str]:
    """The names of the arrays of images by their splits."""
    found: dict[str, str] = {}
    for name, array in arrays.items():
        other = found.setdefault(_split_name(name), name)
        if other != name:
            raise UserError(
                f"{path} has several arrays of images, {other} {list(arrays[other].shape)} and "
                f"{name} {list(array.shape)}; save one, or name them train_images and test_images"
            )
    if not found:
        raise UserError(
            f"{path} has no array of images; it takes [N, H, W] or [N, H, W, C], such as "
            "train_images and test_images"
        )
    return found


def _labels(names: Iterable[str]) -> dict[str, str]:
    """The labels of each split: of several arrays the one with the name of labels, if any."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_split_name(name), []).append(name)
    for split, several in found.items():
        found[split] = [name for name in several if _LABEL_NAMES.search(name)] or several
    return {split: several[0] for split, several in found.items() if len(several) == 1}


def _is_label(array: np.ndarray) -> bool:
    """Whether an array holds one whole number for each image."""
    return array.dtype.kind in "iu" and array.shape in ((array.size,), (array.size, 1))


def _split_name(name: str) -> str:
    """The split in the name of an array; `all` if it has none."""
    return named_split(name) or ALL
