"""What every kind of image source provides, and how its images are split."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from cae_jax.config import Shape
from cae_jax.errors import UserError

SPLITS = ("train", "test")
ALL = "all"  # the split of a source without test images of its own
# Names of the training and test images of a data set, in lower case; a validation split replaces
# missing test images.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
MAX_CLASSES = 10_000  # larger labels count something else


class File(NamedTuple):
    """A file below a folder.

    Attributes:
        key: its path relative to the folder, with slashes.
        size: bytes.
        changed: time of its last change in nanoseconds.
    """

    key: str
    size: int
    changed: int

    @property
    def parts(self) -> list[str]:
        """The folders that it lies in, and its name."""
        return self.key.split("/")

    @property
    def suffix(self) -> str:
        """The suffix of its name in lower case, with the dot."""
        return os.path.splitext(self.key)[1].lower()  # noqa: PTH122 - of 200,000 files


class Listing(NamedTuple):
    """The files below a folder.

    Attributes:
        root: the folder.
        files: those that are not hidden, in the order of their keys.
        hidden: number of hidden files; a hidden folder counts as one.
    """

    root: Path
    files: list[File]
    hidden: int

    def with_suffix(self, suffixes: Iterable[str]) -> list[File]:
        """The files with one of some suffixes."""
        suffixes = frozenset(suffixes)
        return [file for file in self.files if file.suffix in suffixes]

    def unused(self, used: Iterable[File]) -> dict[str, int]:
        """Number of files by suffix, apart from those that are used."""
        used = frozenset(used)
        counts = Counter(file.suffix or "none" for file in self.files if file not in used)
        return dict(counts.most_common()) | ({"hidden": self.hidden} if self.hidden else {})


class Item(NamedTuple):
    """One image of a source, not decoded yet.

    Attributes:
        key: identifies it within the source; decides its split where the source has none.
        name: how an error names it.
        read: opens it; raises `cae_jax.data.conversion.UnreadableError`.
        label: index of its class; None without labels.
    """

    key: str
    name: str
    read: Callable[[], Image.Image | np.ndarray]
    label: int | None = None


class Source(Protocol):
    """Images in a fixed order.

    Attributes:
        classes: names of the labels, in order; () without labels.
        splits: ``("train", "test")``, or ``("all",)`` where `split_of` chooses.
        shape: height, width and channels of all images; None if only reading tells.
        notes: kept in ``source.json``: ignored files, checksums of files.
    """

    classes: tuple[str, ...]
    splits: tuple[str, ...]
    shape: Shape | None
    notes: dict[str, Any]

    def items(self, split: str) -> Iterator[Item]:
        """The images of one of the `splits`."""
        ...


def split_of(key: str, fraction: float) -> str:
    """The split of an image by a hash of its key, so that other images do not matter.

    Args:
        key: of the image; its Unicode form does not matter.
        fraction: of the images that are for training.
    """
    return "train" if _hash(key) < fraction * 2**64 else "test"


def _hash(key: str) -> int:
    normal = unicodedata.normalize("NFC", key).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(normal).digest()[:8])


def mixed(keys: Iterable[str]) -> list[str]:
    """Keys in the order of their hashes, unrelated to `split_of`, which mixes classes."""
    return sorted(keys, key=lambda key: _hash(f"order of {key}"))


def items_of(source: Source, split: str, fraction: float) -> Iterator[Item]:
    """The images of a split, ``"train"`` or ``"test"``, where `fraction` divides them if needed."""
    if ALL not in source.splits:
        return source.items(split)
    return (item for item in source.items(ALL) if split_of(item.key, fraction) == split)


def splits_of(found: Iterable[str], where: object) -> dict[str, str]:
    """Chooses the training and test images among the splits of a source.

    Args:
        found: those of ``train``, ``test``, ``validation`` and ``all`` that it has.
        where: the source, as an error names it.

    Returns:
        the source's split of ``train`` and ``test``, or of ``all``. Validation images replace
        missing test images; a single split is divided.
    """
    found = set(found)
    test = next((split for split in ("test", "validation") if split in found), None)
    if "train" in found and test:
        return {"train": "train", "test": test}
    if len(found) == 1:
        return {ALL: found.pop()}
    raise UserError(
        f"{where} has images of {' and '.join(sorted(found))}; it takes train with test or "
        "validation, or images of one kind, which are split"
    )


def numbered_classes(labels: Iterable[np.ndarray]) -> tuple[str, ...]:
    """Names of classes that have numbers only, up to the largest label; () without labels."""
    return tuple(map(str, range(max((int(each.max()) + 1 for each in labels), default=0))))
