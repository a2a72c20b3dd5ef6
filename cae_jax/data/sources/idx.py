"""Reads folders of IDX files, gzipped or not, by their usual names: MNIST, EMNIST, QMNIST.

An IDX file is big-endian: a 4-byte magic number (0x00000803 for images, 0x00000801 for labels: type
byte 0x08 = uint8, last byte = number of dimensions), one 4-byte length per dimension, then the
bytes in row-major order (http://yann.lecun.com/exdb/mnist/).
"""

import contextlib
import gzip
import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from cae_jax.config import Shape
from cae_jax.data.sources import (
    ALL,
    MAX_CLASSES,
    SPLIT_NAMES,
    File,
    Item,
    Listing,
    numbered_classes,
    splits_of,
)
from cae_jax.errors import UserError, naming

IMAGE_MAGIC, LABEL_MAGIC = 0x0803, 0x0801
TABLE_MAGIC, MAX_COLUMNS = 0x0C02, 64  # of int32, as QMNIST's labels
# Bounds the memory that a forged header can claim: below 1 GB for images of 28 x 28 pixels.
MAX_EXAMPLES = 1_000_000
# Such as train-images-idx3-ubyte.gz, t10k-images.idx3-ubyte, emnist-letters-test-images-idx3-ubyte.
_IMAGES = re.compile(
    r"(?:(?P<name>.+?)[-_.])??(?:(?P<split>[a-z0-9]+)[-_.])?images?[-_.]idx3[-_.]ubyte(?:\.gz)?",
    re.IGNORECASE,
)
_LABELS = re.compile(r"labels?[-_.]idx[12][-_.](?:ubyte|int)(?:\.gz)?", re.IGNORECASE)


class _Files(NamedTuple):
    """The images of one split, and their labels if there are any."""

    images: Path
    labels: Path | None


class IdxFolder:
    """The images of IDX files in their order; a `cae_jax.data.sources.Source`.

    Args:
        listing: of a folder.
        part: beginning of the names of the data set; "" if the folder has only one.
    """

    def __init__(self, listing: Listing, part: str) -> None:
        self._files = _find(listing, part)
        self._names = splits_of(self._files, listing.root)
        self.splits = tuple(self._names)
        files = [self._files[name] for name in self._names.values()]
        sizes = {announced(pair.images)[1:]: pair.images for pair in files}
        if len(sizes) > 1:
            first, second = [f"{path} {h} x {w}" for (h, w), path in sizes.items()]
            raise UserError(f"{first} and {second} pixels differ; give files of one data set")
        ((height, width),) = sizes
        self.shape: Shape | None = (height, width, 1)
        self._labels = self._read_labels()
        self.classes = numbered_classes(self._labels.values())
        paths = [path for pair in files for path in pair if path is not None]
        self.notes: dict[str, Any] = {"source_sha256": {path.name: sha256(path) for path in paths}}

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split."""
        path, labels = self._files[self._names[split]].images, self._labels.get(split)
        for i, image in enumerate(iterate_images(path)):
            label = None if labels is None else int(labels[i])
            yield Item(f"{i}", f"{path}[{i}]", lambda image=image: image, label)

    def _read_labels(self) -> dict[str, np.ndarray]:
        """The labels of the splits; {} if one has none, or if they count something else."""
        found = {}
        for split, name in self._names.items():
            images, path = self._files[name]
            if path is None:
                return {}
            labels, count = read_labels(path), announced(images)[0]
            if len(labels) != count:
                raise UserError(
                    f"{images} holds {count} images and {path} {len(labels)} labels; "
                    "get both from one source"
                )
            if labels.min() < 0:
                raise UserError(f"{path} holds label {labels.min()}; labels start at 0")
            if labels.max() >= MAX_CLASSES:
                return {}
            found[split] = labels
        return found


def files(listing: Listing) -> list[File]:
    """The IDX files of a folder; [] if none has images."""
    if not any(_match(file.key) for file in listing.files):
        return []
    return [file for file in listing.files if "idx" in file.parts[-1].lower()]


def _match(key: str) -> tuple[str, str] | None:
    """The data set and the split in the name of a file of images; None for another file."""
    folder, _, base = key.rpartition("/")
    match = _IMAGES.fullmatch(base)
    if not match:
        return None
    name, split = match["name"] or "", (match["split"] or "").lower()
    if split and split not in SPLIT_NAMES:
        name, split = f"{name}-{split}".strip("-"), ""
    return f"{folder}/{name}".strip("/"), SPLIT_NAMES.get(split, ALL)


def _find(listing: Listing, part: str) -> dict[str, _Files]:
    """The files of the chosen data set by split; of packed and unpacked files the packed ones."""
    found: dict[str, dict[str, _Files]] = {}
    keys = [file.key for file in listing.files]
    for key in keys:
        if match := _match(key):
            name, split = match
            start = re.split(r"images?[-_.]idx3", key, flags=re.IGNORECASE)[0]
            rests = {other: other[len(start) :] for other in keys if other.startswith(start)}
            labels = [other for other, rest in rests.items() if _LABELS.fullmatch(rest)]
            label = listing.root / labels[-1] if labels else None
            found.setdefault(name, {})[split] = _Files(listing.root / key, label)
    exact = [name for name in found if part and name == part]
    matching = exact or [name for name in found if part in name]
    if len(matching) != 1:
        sets = ", ".join(f"::{name}" for name in sorted(found))
        count = f"{len(matching) or 'none'} of them named {part}" if part else f"{len(found)}"
        raise UserError(
            f"{listing.root} has IDX files of several data sets, {count}; add the one that you "
            f"mean to the path: {sets}"
        )
    return found[matching[0]]


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_bytes(images: np.ndarray, labels: np.ndarray) -> tuple[bytes, bytes]:
    """The content of the IDX files of gray images ``[N, height, width, 1]`` and labels ``[N]``."""
    head = np.array([IMAGE_MAGIC, *images.shape[:3]], ">u4").tobytes()
    label_head = np.array([LABEL_MAGIC, len(labels)], ">u4").tobytes()
    return head + images.tobytes(), label_head + labels.astype(np.uint8).tobytes()


def announced(path: Path) -> tuple[int, int, int]:
    """The number, height and width of images in the header of a file.

    Raises:
        UserError: the file is damaged.
    """
    with _opened(path) as file:
        count, (height, width) = _header(file, IMAGE_MAGIC, 2)
        if not count:
            raise ValueError("it holds no images")
    return count, height, width


def iterate_images(path: Path) -> Iterator[np.ndarray]:
    """The images of a file, uint8 ``[height, width]``.

    Raises:
        UserError: the file is damaged; raised at the end if only the end shows it.
    """
    with _opened(path) as file:
        count, shape = _header(file, IMAGE_MAGIC, 2)
        size = math.prod(shape)
        for i in range(count):
            data = file.read(size)
            if len(data) < size:
                raise ValueError(f"it is truncated after {i} of {count} images")
            yield np.frombuffer(data, np.uint8).reshape(shape)
        _check_end(file)


def read_labels(path: Path) -> np.ndarray:
    """The labels of a file, int32 ``[N]``; of QMNIST's tables of int32 the first column.

    Raises:
        UserError: the file is damaged.
    """
    with _opened(path) as file:
        table = file.read(4) == TABLE_MAGIC.to_bytes(4)
        file.seek(0)
        count, shape = _header(file, TABLE_MAGIC if table else LABEL_MAGIC, int(table))
        columns = shape[0] if table else 1
        if not 0 < columns <= MAX_COLUMNS:
            raise ValueError(f"it announces {columns} columns")
        dtype = np.dtype(">i4" if table else "u1")
        data = file.read(count * columns * dtype.itemsize)
        if len(data) < count * columns * dtype.itemsize:
            raise ValueError(f"it is truncated: it has {len(data)} bytes of {count} labels")
        _check_end(file)
        return np.frombuffer(data, dtype).reshape(count, columns)[:, 0].astype(np.int32)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens an IDX file for its unpacked bytes, whatever its name says of compression."""
    with naming(path, "an intact IDX file", "get it again from its source"), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"  # of gzip; an IDX file begins with zeros
        raw.seek(0)
        with gzip.open(raw) if packed else raw as file:
            yield file


def _header(file: IO[bytes], magic: int, dimensions: int) -> tuple[int, list[int]]:
    """Reads the number of examples in a file, and their shape."""
    header = file.read(8 + 4 * dimensions)
    if len(header) < 8 + 4 * dimensions:
        raise ValueError("it is truncated within its header")
    found, count, *shape = np.frombuffer(header, ">u4").tolist()
    if found != magic:
        raise ValueError(f"it has the magic number 0x{found:08x}, expected 0x{magic:08x}")
    if count > MAX_EXAMPLES:
        raise ValueError(f"it announces {count} examples, more than the {MAX_EXAMPLES} allowed")
    return count, shape


def _check_end(file: IO[bytes]) -> None:
    # Reaches the end of the stream, where gzip verifies its checksum.
    if file.read(1):
        raise ValueError("it has bytes after the announced ones")
