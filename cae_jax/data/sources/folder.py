"""Reads the image files of a folder, with optional folders of splits and of classes."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cae_jax.data.files import SUFFIXES, open_image
from cae_jax.data.sources import ALL, SPLIT_NAMES, File, Item, Listing, Source, mixed


def open_folder(listing: Listing) -> Source:
    """Image files in folders of any depth.

    If the top folders are train and test (or val), they are the splits. The names of the next
    folders are the classes if every image lies in one. Files come in the order of a hash, so that
    any first images are of all classes.
    """
    depth, splits = _by_split(listing.with_suffix(SUFFIXES))
    used = [file for files in splits.values() for file in files]
    classes: list[str] = []
    if all(len(file.parts) >= depth + 2 for file in used):
        classes = sorted({file.parts[depth] for file in used})
    labels = {name: label for label, name in enumerate(classes)}
    items = {
        split: partial(_items, listing.root, files, depth, labels)
        for split, files in splits.items()
    }
    return Source(items, tuple(classes), {"ignored": listing.unused(used)})


def _items(root: Path, files: list[File], depth: int, labels: dict[str, int]) -> Iterator[Item]:
    """The images of a split."""
    parts = {file.key: file.parts for file in files}
    for key in mixed(parts):
        path = root / key
        label = labels.get(parts[key][depth])
        yield Item(key, str(path), partial(open_image, path, str(path)), label)


def _by_split(images: list[File]) -> tuple[int, dict[str, list[File]]]:
    """The depth of the folders of classes, and the files of each split."""
    found: dict[str, list[File]] = {}
    for file in images:
        name = file.parts[0].lower() if len(file.parts) > 1 else ""
        found.setdefault(SPLIT_NAMES.get(name, ""), []).append(file)
    test = found.get("test", found.get("validation"))
    if "train" in found and test:
        return 1, {"train": found["train"], "test": test}
    return int(set(found) == {"train"}), {ALL: images}
