"""Reads the image files of a folder, with optional folders of splits and of classes."""

import itertools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from cae_jax.data.files import SUFFIXES, open_image
from cae_jax.data.sources import (
    ALL,
    SPLIT_NAMES,
    File,
    Item,
    Listing,
    Source,
    listed,
    mixed,
    named_split,
    pairs,
    splits_of,
)

logger = logging.getLogger(__name__)
Splits = dict[str, list[File]]  # by `SPLIT_NAMES` and `ALL`
# Names of what belongs to an image; MVTec's masks lie in a folder beside train and test.
_MASKS = re.compile(
    r"(?<![a-z])(?:masks?|segmentations?|annotations?|labels|gt|ground_?truth)(?![a-z])",
    re.IGNORECASE,
)
_GROUND_TRUTH = "ground_truth"


def files(listing: Listing) -> list[File]:
    """The image files; where there are none, .npy files of one image each."""
    return listing.with_suffix(SUFFIXES) or listing.with_suffix([".npy"])


def open_folder(listing: Listing, names: Sequence[str] = ()) -> Source:
    """Image files in folders of any depth; with the two `names` of folders, pairs of files.

    Folders, or files, whose names tell training from test images are the splits, at the first depth
    where all names do. The first other folders that differ are the classes, if every image lies in
    one. Files come in the order of a hash, so that any first images are of all classes.
    """
    images, masks = _without_masks(files(listing), names)
    found, level = _by_split(images)
    splits = splits_of(
        found,
        listing.root,
        lambda files: listed(file.parts[level] for file in files),
        (name for file in images for name in file.parts),
    )
    used = [file for files in splits.values() for file in files]
    depth = _class_level(used)
    classes = [] if depth is None else sorted({file.parts[depth] for file in used})
    labels = {name: label for label, name in enumerate(classes)}
    items = {
        split: partial(_items, listing.root, files, depth, labels)
        for split, files in splits.items()
    }
    ignored = listing.unused([*used, *masks])
    if masks:
        ignored[f"masks in {_GROUND_TRUTH}"] = len(masks)
    notes = {"ignored": ignored}
    source = Source(items, tuple(classes), notes, len(used), encoded=True, files=True)
    return pairs.of_folders(source, names, listing.root) if names else source


def _items(
    root: Path, files: list[File], depth: int | None, labels: dict[str, int]
) -> Iterator[Item]:
    """The images of a split."""
    found = {file.key: file for file in files}
    for key in mixed(found):
        path = root / key
        label = None if depth is None else labels[found[key].parts[depth]]
        yield Item(key, str(path), partial(open_image, path, str(path)), label)


def _without_masks(images: list[File], pairs: Sequence[str]) -> tuple[list[File], list[File]]:
    """The images, and the masks in folders of the ground truth; warns of other masks.

    The names of the folders of pairs, which may well be called masks, do not count.
    """
    names = re.compile("|".join(f"(?<=/){re.escape(name)}/" for name in pairs) or r"\Z")
    keys = {file: names.sub("", f"/{'/'.join(file.parts)}") for file in images}
    masks = [file for file in images if f"/{_GROUND_TRUTH}/" in keys[file]]
    left = [file for file in images if f"/{_GROUND_TRUTH}/" not in keys[file]]
    if not left:
        return images, []
    like = [file.key for file in left if _MASKS.search(keys[file])]
    if 0 < len(like) < len(left):
        logger.warning(
            "%d of %d images look like masks and are used: %s; leave them out with patterns "
            "(exclude), such as *_mask.png or masks",
            *(len(like), len(left), listed(like)),
        )
    return left, masks


def _by_split(images: list[File]) -> tuple[Splits, int]:
    """The files of each split, and the level of the names that tell them."""
    parts = [file.parts for file in images]
    for level in range(max(map(len, parts))):
        found, others = _grouped(images, level, named_split)
        if not others and "train" in found and len(found) > 1:
            return found, level
    # Below one outer folder, beside images of no split, which are left out.
    levels = zip(*(each[:-1] for each in parts), strict=False)
    outer = len(list(itertools.takewhile(lambda names: len(set(names)) == 1, levels)))
    inner = [file for file in images if len(file.parts) > outer + 1]
    found, others = _grouped(inner, outer, named_split)
    taken, left_out = (
        len({file.parts[outer] for file in files})
        for files in (itertools.chain(*found.values()), others)
    )
    if left_out >= taken:  # a class may be called train_station, and another one test_tube
        found, _ = _grouped(inner, outer, lambda name: SPLIT_NAMES.get(name.lower()))
    if "train" in found and len(found) > 1:
        return found, outer
    return {ALL: images}, 0


def _grouped(
    files: list[File], level: int, split: Callable[[str], str | None]
) -> tuple[Splits, list[File]]:
    """Files by the split in the names of one level, and those without."""
    found: Splits = {}
    for file in files:
        name = "".join(file.parts[level : level + 1])
        found.setdefault(split(name) or "", []).append(file)
    return found, found.pop("", [])


def _class_level(files: list[File]) -> int | None:
    """The level of the folders of classes: the first whose names differ and are not of splits."""
    common = min(len(file.parts) for file in files) - 1
    names = [{file.parts[level] for file in files} for level in range(common)]
    levels = [k for k, each in enumerate(names) if not all(map(named_split, each))]
    return next((k for k in levels if len(names[k]) > 1), next(iter(levels), None))
