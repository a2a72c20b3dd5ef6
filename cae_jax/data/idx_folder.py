"""Reads folders of IDX files by their usual names: EMNIST, QMNIST and the like."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cae_jax.config import Shape
from cae_jax.data import idx
from cae_jax.data.files import SPLIT_NAMES, File, Listing
from cae_jax.data.source import ALL, MOST_CLASSES, Item, splits_of
from cae_jax.errors import UserError

# Such as train-images-idx3-ubyte.gz, t10k-images.idx3-ubyte, emnist-letters-test-images-idx3-ubyte.
_IMAGES = re.compile(
    r"(?:(?P<name>.+?)[-_.])??(?:(?P<split>[a-z0-9]+)[-_.])?images?[-_.]idx3[-_.]ubyte(?:\.gz)?",
    re.IGNORECASE,
)
_LABELS = re.compile(r"labels?[-_.]idx[12][-_.](?:ubyte|int)(?:\.gz)?", re.IGNORECASE)


class _Files(NamedTuple):
    """The images of one split, and their labels where there are some."""

    images: Path
    labels: Path | None


class IdxFolder:
    """The images of IDX files in their order; a `cae_jax.data.source.Source`.

    Args:
        listing: of a folder.
        chosen: beginning of the names of the data set; "" where the folder has one alone.
    """

    def __init__(self, listing: Listing, chosen: str) -> None:
        self._files = _find(listing, chosen)
        self._names = splits_of(self._files, listing.root)
        self.splits = tuple(self._names)
        files = [self._files[name] for name in self._names.values()]
        sizes = {idx.announced(pair.images)[1:]: pair.images for pair in files}
        if len(sizes) > 1:
            first, second = [f"{path} {h} x {w}" for (h, w), path in sizes.items()]
            raise UserError(f"{first} and {second} pixels differ; give files of one data set")
        ((height, width),) = sizes
        self.shape: Shape | None = (height, width, 1)
        self._labels = self._read_labels()
        most = max((int(labels.max()) for labels in self._labels.values()), default=-1)
        self.classes = tuple(map(str, range(most + 1)))
        paths = [path for pair in files for path in pair if path is not None]
        self.notes: dict[str, Any] = {"sha256": {path.name: _sum(path) for path in paths}}

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split."""
        path, labels = self._files[self._names[split]].images, self._labels.get(split)
        for i, image in enumerate(idx.iterate_images(path)):
            label = None if labels is None else int(labels[i])
            yield Item(f"{i}", f"{path}[{i}]", lambda image=image: image, label)

    def _read_labels(self) -> dict[str, np.ndarray]:
        """The labels of the splits; {} where one has none, or numbers of something else."""
        found = {}
        for split, name in self._names.items():
            images, path = self._files[name]
            if path is None:
                return {}
            labels, count = idx.read_labels(path), idx.announced(images)[0]
            if len(labels) != count:
                raise UserError(
                    f"{images} holds {count} images and {path} {len(labels)} labels; "
                    "get both from one source"
                )
            if labels.min() < 0:
                raise UserError(f"{path} holds label {labels.min()}; labels start at 0")
            if labels.max() >= MOST_CLASSES:
                return {}
            found[split] = labels
        return found


def files(listing: Listing) -> list[File]:
    """The IDX files of a folder; [] without images among them."""
    if not any(_match(file.key) for file in listing.files):
        return []
    return [file for file in listing.files if "idx" in file.parts[-1].lower()]


def _match(key: str) -> tuple[str, str] | None:
    """The data set and the split that the name of a file of images says; None of another file."""
    folder, _, base = key.rpartition("/")
    match = _IMAGES.fullmatch(base)
    if not match:
        return None
    name, split = match["name"] or "", (match["split"] or "").lower()
    if split and split not in SPLIT_NAMES:
        name, split = f"{name}-{split}".strip("-"), ""
    return f"{folder}/{name}".strip("/"), SPLIT_NAMES.get(split, ALL)


def _find(listing: Listing, chosen: str) -> dict[str, _Files]:
    """The files of the data set that is chosen, by their splits; packed ones where both are."""
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
    exact = [name for name in found if chosen and name == chosen]
    matching = exact or [name for name in found if chosen in name]
    if len(matching) != 1:
        sets = ", ".join(f"::{name}" for name in sorted(found))
        count = f"{len(matching) or 'none'} of them named {chosen}" if chosen else f"{len(found)}"
        raise UserError(
            f"{listing.root} has IDX files of several data sets, {count}; add the one that you "
            f"mean to the path: {sets}"
        )
    return found[matching[0]]


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
