"""What every kind of image source provides, and how its images are split."""

import hashlib
import itertools
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from cae_jax.errors import UserError

T = TypeVar("T")
logger = logging.getLogger(__name__)
SPLITS = ("train", "test", "validation")  # the last one only of sources that have all three
ALL = "all"  # the split of a source without test images of its own
# Words in the names of training, test and validation images, in lower case.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("eval", "evaluation"), "evaluation"),  # test or validation, what is missing
}
# Names that begin or end with one, as testset does, and latest.
_SIMILAR = re.compile("^(?:{0})|(?:{0})$".format("|".join(w for w in SPLIT_NAMES if len(w) > 3)))
_CASES = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_AXES = re.compile(r"(?<![^\W\d_])([xy])(?=train|test|val)")  # as in xtrain
_ANY = re.compile("train|test|t10k|val|dev", re.IGNORECASE)  # one of which each word has
_SHOWN = 3  # names in a message
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
        """The folders that it lies in, and its name.

        Archives from Windows leave backslashes in names of files where they are unpacked elsewhere.
        """
        return self.key.replace("\\", "/").split("/")

    @property
    def suffix(self) -> str:
        """The suffix of its name in lower case, with the dot."""
        return os.path.splitext(self.key)[1].lower()  # noqa: PTH122 - of 200,000 files


class Listing(NamedTuple):
    """The files below a folder.

    Attributes:
        root: the folder.
        files: those that are read, in the order of their keys.
        left_out: numbers of the others by the reason; a hidden folder counts as one.
    """

    root: Path
    files: list[File]
    left_out: dict[str, int]

    def with_suffix(self, suffixes: Iterable[str]) -> list[File]:
        """The files with one of some suffixes."""
        suffixes = tuple(suffixes)
        return [file for file in self.files if file.key.lower().endswith(suffixes)]

    def unused(self, used: Iterable[File]) -> dict[str, int]:
        """Number of files by suffix, apart from those that are used."""
        used = frozenset(used)
        counts = Counter(file.suffix or "none" for file in self.files if file not in used)
        return dict(counts.most_common()) | self.left_out


class Item(NamedTuple):
    """One image of a source, not decoded yet.

    Attributes:
        key: identifies it within the source; decides its split where the source has none.
        name: how an error names it.
        read: opens it; raises `cae_jax.data.conversion.UnreadableError`.
        label: index of its class; None without labels.
        input: what is to become this image, in pairs; None without.
    """

    key: str
    name: str
    read: Callable[[], Image.Image | np.ndarray]
    label: int | None = None
    input: "Item | None" = None


class Source(NamedTuple):
    """Images in a fixed order.

    Attributes:
        items: reads the images of each split: of ``train`` and ``test``, perhaps ``validation``;
            or of ``all`` where `split_of` chooses.
        classes: names of the labels, in order; () without labels.
        notes: kept in ``source.json``: ignored files, checksums of files.
        total: number of images or pairs, or of files with several frames.
        encoded: whether images are decoded when they are opened, and not before.
        files: whether they can be opened in any order, as files of their own.
    """

    items: dict[str, Callable[[], Iterator[Item]]]
    classes: tuple[str, ...]
    notes: dict[str, Any]
    total: int
    encoded: bool = False
    files: bool = False


class Images(NamedTuple):
    """The images of a split that lie in one array.

    Attributes:
        key: gives the key of the image of an index, see `Item`.
        name: how an error names the array.
        total: N, the number of images.
        read: the images in blocks, ``[n, H, W]`` or ``[n, H, W, C]``.
        labels: whole numbers ``[N]``; None without labels.
    """

    key: Callable[[int], str]
    name: str
    total: int
    read: Callable[[], Iterable[np.ndarray]]
    labels: np.ndarray | None

    def items(self, labelled: bool) -> Iterator[Item]:
        """The images; raises `UserError` where there are more or fewer labels."""
        labels = self.labels if labelled else None
        if labels is not None and len(labels) != self.total:
            raise UserError(
                f"{self.name} has {self.total} images and {len(labels)} labels; give as many of "
                "both"
            )
        for i, image in enumerate(itertools.chain.from_iterable(self.read())):
            label = None if labels is None else int(labels[i])
            yield Item(self.key(i), f"{self.name}[{i}]", partial(np.asarray, image), label)


def of_arrays(images: dict[str, Images], notes: dict[str, Any]) -> Source:
    """The source of arrays by their splits, with labels if all splits have some."""
    labels = [each.labels for each in images.values() if each.labels is not None]
    classes = numbered_classes(labels) if len(labels) == len(images) else ()
    items = {split: partial(each.items, bool(classes)) for split, each in images.items()}
    return Source(items, classes, notes, sum(each.total for each in images.values()))


def block_length(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """How many of an array's elements are read at once, about 4 MB."""
    return max(1, 2**22 // max(1, math.prod(shape[1:]) * dtype.itemsize))


def numbered_classes(labels: list[np.ndarray]) -> tuple[str, ...]:
    """Names of classes that have numbers only; () where the labels count something else."""
    values = np.concatenate(labels).astype(np.int64)
    if not values.size or values.min() < 0 or values.max() >= MAX_CLASSES:
        return ()
    return tuple(map(str, range(values.max() + 1)))


def items_of(source: Source, split: str, fraction: float) -> Iterator[Item]:
    """The images of a split; of a source that is divided, `fraction` are for training."""
    if ALL not in source.items:
        return source.items[split]()
    return (item for item in source.items[ALL]() if split_of(item.key, fraction) == split)


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


def named_split(name: str) -> str | None:
    """The split in the name of a folder, file or array: that of its first word which names one.

    Words end at digits, other characters and changes of case: ``seg_train``, ``train2017``,
    ``trainA`` and ``xtrain`` name one, ``trainers`` none.
    """
    if not _ANY.search(name):  # most of 200,000 names
        return None
    name = _AXES.sub(r"\1_", _CASES.sub("_", name).lower())
    words = re.findall(r"t10k|[^\W\d_]+", name)
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def splits_of(
    found: dict[str, T],
    where: object,
    title: Callable[[T], str] = str,
    names: Iterable[str] = (),
) -> dict[str, T]:
    """Chooses the training, validation and test images among those of a source; logs the choice.

    Args:
        found: the images by the values of `SPLIT_NAMES` and ``all``, those that it has.
        where: the source, as messages name it.
        title: how messages name the images of a split.
        names: of its folders and files, among which a message names those like a split's.

    Returns:
        the images by `SPLITS`, or of ``all``. Validation images replace missing test images; a
        single split is divided.
    """
    found = dict(found)
    for missing in ("test", "validation"):
        if missing not in found and "evaluation" in found:
            found[missing] = found.pop("evaluation")
    if "test" not in found and len(found) > 1 and "validation" in found:
        found["test"] = found.pop("validation")
    if found.keys() >= {"train", "test"}:
        chosen = {split: found[split] for split in SPLITS if split in found}
        titles = (f"{split} images of {title(images)}" for split, images in chosen.items())
        logger.warning("%s: %s", where, ", ".join(titles))
        return chosen
    if len(found) == 1:
        if similar := listed(name for name in names if _is_like_a_split(name)):
            logger.warning(
                "%s is divided by a hash: names such as %s do not tell training from test images "
                "for all of them, in folders of one depth",
                *(where, similar),
            )
        return {ALL: next(iter(found.values()))}
    raise UserError(
        f"{where} has images of {' and '.join(sorted(found))}; it takes train with test or "
        "validation, or images of one kind, which are split"
    )


def _is_like_a_split(name: str) -> bool:
    return bool(named_split(name) or _SIMILAR.search(name.lower()))


def listed(names: Iterable[str]) -> str:
    """The first of some names, sorted, and the number of others."""
    names = sorted(set(names))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
