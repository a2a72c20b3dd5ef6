"""Pairs of inputs and targets among the images of a source, matched by their names."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from cae_jax.data.sources import Item, Source, listed, mixed
from cae_jax.errors import UserError

logger = logging.getLogger(__name__)


def of_folders(source: Source, names: Sequence[str], root: Path) -> Source:
    """The pairs among the images of a folder: files of one name in two folders of the same place.

    Args:
        source: of all images.
        names: of the folders of inputs and of targets, at any depth. Suffixes may differ.
        root: the folder, as an error names it.

    Returns:
        targets with their inputs, without labels. Files without a partner are named and left out.

    Raises:
        UserError: no pairs, or two files of one name.
    """
    pairs, alone, beside = {}, [], 0
    for split, items in source.items.items():
        sides = _sides(items, names)
        common = mixed(sides[0].keys() & sides[1].keys())
        pairs[split] = [sides[1][key]._replace(key=key, input=sides[0][key]) for key in common]
        alone += [side[key].key for side in sides[:2] for key in sorted(side.keys() - set(common))]
        beside += len(sides[2])
    if not any(pairs.values()):
        raise UserError(
            f"{root} has no two files of one name in folders {names[0]} and {names[1]}"
            f"{f': {listed(alone)} are alone' if alone else ''}",
            "`pairs` takes the names of the folders of inputs and of targets",
        )
    if alone:
        logger.warning("%d images without a partner are left out: %s", len(alone), listed(alone))
    ignored = {"without a partner": len(alone), f"beside {' and '.join(names)}": beside}
    ignored = source.notes.get("ignored", {}) | {key: n for key, n in ignored.items() if n}
    notes = {**source.notes, "ignored": ignored}
    items = {split: partial(iter, each) for split, each in pairs.items()}
    count = sum(map(len, pairs.values()))
    return source._replace(items=items, classes=(), notes=notes, total=count)


def _sides(
    items: Callable[[], Iterator[Item]], names: Sequence[str]
) -> tuple[dict[str, Item], dict[str, Item], dict[str, Item]]:
    """Inputs, targets and other images by their path without suffix and the folder of the side."""
    sides: tuple[dict[str, Item], dict[str, Item], dict[str, Item]] = {}, {}, {}
    for item in items():
        folder, _, file = f"/{item.key}".rpartition("/")
        places = [f"{folder}/".partition(f"/{name}/") for name in names]
        side = next((i for i, (_, found, _) in enumerate(places) if found), 2)
        before, _, after = places[side] if side < 2 else (folder, "", "/")
        key = f"{before}/{after}{Path(file).stem}".lstrip("/")
        if (other := sides[side].setdefault(key, item)) is not item and side < 2:
            raise UserError(
                f"{other.name} and {item.name} have one name; rename one, or leave one out"
            )
    return sides
