"""Reads folders of IDX files, gzipped or not, by their usual names: MNIST, EMNIST, QMNIST.

An IDX file is big-endian: a 4-byte magic number (0x00000803 for images, 0x00000801 for labels: type
byte 0x08 = uint8, last byte = number of dimensions), one 4-byte length per dimension, then the
values in row-major order (http://yann.lecun.com/exdb/mnist/).
"""

import contextlib
import gzip
import hashlib
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cae_jax.data.sources import (
    ALL,
    SPLIT_NAMES,
    File,
    Images,
    Listing,
    Source,
    block_length,
    of_arrays,
    splits_of,
)
from cae_jax.errors import UserError, naming

IMAGE_MAGIC, LABEL_MAGIC = 0x0803, 0x0801
TABLE_MAGIC = 0x0C02  # of int32, as QMNIST's labels
MAX_BYTES = 10**9  # which a forged header can claim
# Such as train-images-idx3-ubyte.gz, t10k-images.idx3-ubyte, emnist-letters-test-images-idx3-ubyte.
_IMAGES = re.compile(
    r"(?:(?P<name>.+?)[-_.])??(?:(?P<split>[a-z0-9]+)[-_.])?images?[-_.]idx3[-_.]ubyte(?:\.gz)?",
    re.IGNORECASE,
)
_LABELS = re.compile(r"labels?[-_.]idx[12][-_.](?:ubyte|int)(?:\.gz)?", re.IGNORECASE)


def open_folder(listing: Listing, part: str) -> Source:
    """The images of IDX files in their order.

    Args:
        listing: of a folder.
        part: beginning of the names of the data set; "" if the folder has only one.

    Raises:
        UserError: a damaged file of labels, or files of several data sets.
    """
    pairs = splits_of(_find(listing, part), listing.root, lambda pair: pair[0].name)
    return of_arrays(
        {
            split: Images(
                str,
                str(images),
                _count(images),
                partial(_blocks, images, IMAGE_MAGIC),
                labels and read_labels(labels),
            )
            for split, (images, labels) in pairs.items()
        },
        {
            "source_sha256": {
                path.name: sha256(path) for pair in pairs.values() for path in pair if path
            }
        },
    )


def files(listing: Listing) -> list[File]:
    """The IDX files of a folder; [] if none has images."""
    found = [file for file in listing.files if "idx" in file.key.lower()]  # few of 200,000
    if not any(_match(file.key) for file in found):
        return []
    return [file for file in found if "idx" in file.parts[-1].lower()]


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


def _find(listing: Listing, part: str) -> dict[str, tuple[Path, Path | None]]:
    """The images, and the labels if any, of each split of the chosen data set.

    Of packed and unpacked files those that are packed.
    """
    found: dict[str, dict[str, tuple[Path, Path | None]]] = {}
    keys = [file.key for file in listing.files]
    for key in keys:
        if match := _match(key):
            name, split = match
            start = re.split(r"images?[-_.]idx3", key, flags=re.IGNORECASE)[0]
            rests = {other: other[len(start) :] for other in keys if other.startswith(start)}
            labels = [other for other, rest in rests.items() if _LABELS.fullmatch(rest)]
            label = listing.root / labels[-1] if labels else None
            found.setdefault(name, {})[split] = listing.root / key, label
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


def to_bytes(array: np.ndarray) -> bytes:
    """The content of the IDX file of images uint8 ``[N, height, width]`` or of labels ``[N]``."""
    head = np.array([0x0800 + array.ndim, *array.shape], ">u4")
    return head.tobytes() + array.astype(np.uint8).tobytes()


def read_images(path: Path) -> np.ndarray:
    """The images of a file, uint8 ``[N, height, width]``; raises `UserError` if it is damaged."""
    return _read(path, IMAGE_MAGIC)


def read_labels(path: Path) -> np.ndarray:
    """The labels of a file, int32 ``[N]``; of QMNIST's tables of int32 the first column.

    Raises:
        UserError: the file is damaged.
    """
    labels = _read(path, LABEL_MAGIC, TABLE_MAGIC)
    return labels.reshape(len(labels), -1)[:, 0].astype(np.int32)


def _read(path: Path, *magics: int) -> np.ndarray:
    """The array in an IDX file, packed or not, whatever its name says."""
    return np.concatenate(list(_blocks(path, *magics)))


def _count(path: Path) -> int:
    """The number of images that a file announces."""
    with _opened(path, IMAGE_MAGIC) as (_, shape, _):
        return shape[0]


def _blocks(path: Path, *magics: int) -> Iterator[np.ndarray]:
    """The array in an IDX file, one part after the other."""
    with _opened(path, *magics) as (file, shape, dtype):
        each, found = math.prod(shape[1:]) * dtype.itemsize, 0
        size, length = shape[0] * each, block_length(tuple(shape), dtype)
        while found < size:
            content = file.read(min(length * each, size - found))
            found += len(content)
            if not content or len(content) % each:
                raise ValueError(f"it is truncated: {found} of the {size} bytes announced")
            yield np.frombuffer(content, dtype).reshape(-1, *shape[1:])
        if file.read(1):  # reaches the end, where gzip verifies its checksum
            raise ValueError(f"it has bytes after the {size} bytes announced")


@contextlib.contextmanager
def _opened(path: Path, *magics: int) -> Iterator[tuple[Any, list[int], np.dtype]]:
    """An IDX file after its header, with the shape and type of its array."""
    with naming(path, "an intact IDX file", "get it again from its source"), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"  # of gzip; an IDX file begins with zeros
        raw.seek(0)
        with gzip.open(raw) if packed else raw as file:
            found = file.read(4)
            magic = int.from_bytes(found)
            if magic not in magics:
                raise ValueError(
                    f"it begins with 0x{found.hex()}, expected the magic number 0x{magics[0]:08x}"
                )
            header = file.read(4 * (magic % 256))
            if len(header) < 4 * (magic % 256):
                raise ValueError("it is truncated within its header")
            shape = np.frombuffer(header, ">u4").tolist()
            dtype = np.dtype(">i4" if magic == TABLE_MAGIC else "u1")
            size = math.prod(shape) * dtype.itemsize
            if not 0 < size <= MAX_BYTES:
                raise UserError(
                    f"{path} announces {shape} values; IDX files take 1 to {MAX_BYTES} bytes",
                    "get it again from its source, or save it as a .npy file",
                )
            yield file, shape, dtype
