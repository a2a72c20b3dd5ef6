"""Reads the image files of a folder, with optional folders of splits and of classes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from cae_jax.config import Shape
from cae_jax.data.conversion import SUFFIXES, open_image
from cae_jax.data.sources import ALL, SPLIT_NAMES, File, Item, Listing, mixed


class ImageFolder:
    """Image files in folders of any depth; a `cae_jax.data.sources.Source`.

    If the top folders are train and test (or val), they are the splits. The names of the next
    folders are the classes if every image lies in one. Files come in the order of a hash, so that
    any first images are of all classes.
    """

    def __init__(self, listing: Listing) -> None:
        self._root = listing.root
        self.shape: Shape | None = None
        images = listing.with_suffix(SUFFIXES)
        self._depth, self._files = _by_split(images)
        used = [file for files in self._files.values() for file in files]
        self.notes: dict[str, Any] = {"ignored": listing.unused(used)}
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
    """The files of each split, and the depth of the folders of classes."""
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
    """The names of the folders at a depth; () if a file lies in none there."""
    if any(len(file.parts) < depth + 2 for file in files):
        return ()
    return tuple(sorted({file.parts[depth] for file in files}))
