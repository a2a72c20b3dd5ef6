"""Reads the image files of a folder, with or without folders of splits and of classes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from cae_jax.config import Shape
from cae_jax.data.conversion import SUFFIXES, open_image
from cae_jax.data.files import SPLIT_NAMES, File, Listing
from cae_jax.data.source import ALL, Item, mixed


class ImageFolder:
    """Image files in folders of any depth; a `cae_jax.data.source.Source`.

    Where the first folders are train and test (or val), they are the splits. The names of the next
    folders are the classes, where all images lie in one. Files come in the order of a hash, so
    that the first ones are of all classes.
    """

    shape: Shape | None = None

    def __init__(self, listing: Listing) -> None:
        self._root = listing.root
        images = listing.of(SUFFIXES)
        self._depth, self._files = _by_split(images)
        used = [file for files in self._files.values() for file in files]
        self.notes: dict[str, Any] = {"ignored": listing.others(used)}
        self.splits = tuple(self._files)
        self.classes = _classes(used, self._depth)

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split."""
        labels = {name: label for label, name in enumerate(self.classes)}
        files = {file.key: file for file in self._files[split]}
        for key in mixed(files):
            path = self._root / key
            name = files[key].parts[self._depth]
            yield Item(key, str(path), partial(open_image, path, str(path)), labels.get(name))


def _by_split(images: list[File]) -> tuple[int, dict[str, list[File]]]:
    """The files of each split, and how many folders its name takes."""
    found: dict[str, list[File]] = {}
    for file in images:
        name = file.parts[0].lower() if len(file.parts) > 1 else ""
        found.setdefault(SPLIT_NAMES.get(name, ""), []).append(file)
    test = next((split for split in ("test", "validation") if split in found), None)
    if "train" in found and test:
        return 1, {"train": found["train"], "test": found[test]}
    if set(found) == {"train"}:
        return 1, {ALL: images}
    return 0, {ALL: images}


def _classes(files: list[File], depth: int) -> tuple[str, ...]:
    """The names of the folders at a depth; () where a file lies in none there."""
    if any(len(file.parts) < depth + 2 for file in files):
        return ()
    return tuple(sorted({file.parts[depth] for file in files}))
