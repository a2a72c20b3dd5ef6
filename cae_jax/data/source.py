"""What every kind of image source gives, and how its images are split."""

import hashlib
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from cae_jax.config import Shape, TrainConfig
from cae_jax.errors import UserError

SPLITS = ("train", "test")
ALL = "all"  # the split of a source without test images of its own
MOST_CLASSES = 10_000  # larger labels are numbers of something else


class Item(NamedTuple):
    """One image of a source, not decoded yet.

    Attributes:
        key: what identifies it within the source; decides its split where the source has none.
        name: how an error names it.
        read: opens it; raises `cae_jax.data.conversion.UnreadableError`.
        label: index of its class; None without labels.
    """

    key: str
    name: str
    read: Callable[[], Image.Image | np.ndarray]
    label: int | None = None


class Source(Protocol):
    """Images that lie somewhere, in an order that stays."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, in order; () without labels."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """``("train", "test")``, or ``("all",)`` where `split_of` chooses."""
        ...

    @property
    def shape(self) -> Shape | None:
        """Height, width and channels that all images have; None where only reading tells."""
        ...

    @property
    def notes(self) -> dict[str, Any]:
        """What is worth keeping beside the images: files left aside, sums of files."""
        ...

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
    """Keys in the order of their hashes of another kind than `split_of`, classes mixed."""
    return sorted(keys, key=lambda key: _hash(f"order of {key}"))


def items_of(source: Source, split: str, config: TrainConfig) -> Iterator[Item]:
    """The images of a split, ``"train"`` or ``"test"``, at most as many as the config says."""
    if ALL in source.splits:
        items = source.items(ALL)
        chosen = (item for item in items if split_of(item.key, config.split) == split)
    else:
        chosen = source.items(split)
    return itertools.islice(chosen, config.limit)


def splits_of(found: Iterable[str], where: object) -> dict[str, str]:
    """Which of the splits that a source has are its training and test images.

    Args:
        found: those of ``train``, ``test``, ``validation`` and ``all`` that it has.
        where: the source, as an error names it.

    Returns:
        the source's split of ``train`` and ``test``, or of ``all``. Validation images stand for
        test images where there are no others, and training images are split where they are alone.
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
