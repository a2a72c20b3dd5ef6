"""Finds images by a path, and the folder that they are prepared in; opens no file of them."""

import contextlib
import difflib
import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from cae_jax import atomic
from cae_jax.config import NAMED, TrainConfig
from cae_jax.data import conversion, decoded, idx_folder, parquet, tfds_folder
from cae_jax.data.files import File, Listing, fingerprint, walk
from cae_jax.errors import UserError

logger = logging.getLogger(__name__)

ACCEPTED = (
    "a folder of images, of IDX files, of a prepared TFDS data set or of parquet files, or a .npz "
    "or .npy file"
)
_SEPARATOR = "::"  # between a path and a part of the data set there
# The fields of a config that decide what is prepared from a source.
_OPTIONS = ("image_size", "resize", "channels", "background", "split", "limit", "skip_unreadable")
# Kept beside prepared data: where they are from, and how many files were left out.
RECORD = "source.json"


class Found(NamedTuple):
    """Images that a path leads to, not opened yet.

    Attributes:
        path: absolute; the name alone of a data set that has one.
        chosen: which part of the data set there; "" for all.
        listing: the files; None where nothing is there any more.
        given: the path as it was given.
    """

    path: Path
    chosen: str
    listing: Listing | None
    given: str

    @property
    def data(self) -> str:
        """The path with the part, as in a config."""
        return f"{self.path}{_SEPARATOR}{self.chosen}" if self.chosen else str(self.path)


def find(data: str) -> Found:
    """Looks at what a path leads to; lists files and opens none.

    Args:
        data: a path, and after ``::`` a part of the data set there.

    Raises:
        UserError: the path leads to a file of another kind, or a folder cannot be read.
    """
    if data in NAMED:
        return Found(Path(data), "", Listing(Path(data), [], 0), data)
    path, chosen = _absolute(data), ""
    if not _exists(path) and _SEPARATOR in data:
        head, _, chosen = data.rpartition(_SEPARATOR)
        path = _absolute(head)
    if _exists(path) and not path.is_dir():
        if path.suffix.lower() in conversion.SUFFIXES:
            raise UserError(f"`data` is the image {path}; give its folder, {path.parent}")
        if not path.is_file() or path.suffix.lower() not in (".npz", ".npy", ".parquet"):
            raise UserError(f"`data` is {path}, which is no folder; it takes {ACCEPTED}")
    return Found(path, chosen, walk(path) if _exists(path) else None, data)


def _exists(path: Path) -> bool:
    """False for what the system refuses, such as a name that is too long, too."""
    return os.path.exists(path)  # noqa: PTH110 - which raises there


def _absolute(path: str) -> Path:
    # Also without "..", so that a folder has one path.
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111 - which raises


def missing(data: str) -> UserError:
    """The error for a name or path where nothing is."""
    path = _absolute(data)
    near = difflib.get_close_matches(data, NAMED, n=1)
    with contextlib.suppress(OSError, ValueError):  # the advice alone
        names = [] if near else [each.name for each in path.parent.iterdir()]
        names = [name for name in names if name != path.name]  # a link that leads nowhere
        close = difflib.get_close_matches(path.name, names, 1)
        near = near or [str(path.parent / each) for each in close]
    hint = f"; did you mean {near[0]}?" if near else ""
    return UserError(
        f"`data` is {data!r}, where nothing is; it takes {', '.join(NAMED)}, or the path of "
        f"{ACCEPTED}{hint}"
    )


def prepared_name(config: TrainConfig, found: Found, data_dir: str | Path | None) -> str:
    """The name of the folder of prepared data: of the path, the options and the files.

    Where the source is gone, the newest that was prepared with the same path and options.

    Raises:
        UserError: nothing is there, and nothing was prepared.
    """
    options = {name: getattr(config, name) for name in _OPTIONS}
    path = found.path
    name = path.parent.name if re.fullmatch(r"[\d.]+", path.name) else path.name
    start = f"{_slug(name)}-{_short_sum(repr((found.data, options)))}-"
    if found.listing is not None:
        return start + _short_sum(fingerprint(_relevant(found.listing)))
    copies = decoded.root(data_dir) / decoded.BUILDER
    prepared = list(copies.glob(f"{start}*/{decoded.VERSION}"))
    if not prepared:
        raise missing(found.given)
    newest = max(prepared, key=lambda each: each.stat().st_mtime_ns)
    logger.warning("%s is gone; reading its prepared copy in %s", found.data, newest)
    return newest.parent.name


def _relevant(listing: Listing) -> list[File]:
    """The files that images may come from: notes beside them may change."""
    if tfds_folder.find_folder(listing) is not None:
        return tfds_folder.files(listing)
    images = listing.of({*conversion.SUFFIXES, parquet.SUFFIX})
    return idx_folder.files(listing) or images or listing.files


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:30] or "images"


def _short_sum(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def read_record(prepared: Path) -> dict[str, Any]:
    """What is kept beside prepared data; {} where it cannot be read."""
    try:
        record = json.loads((prepared / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(prepared: Path, record: dict[str, Any]) -> None:
    """Keeps a record beside prepared data."""
    atomic.write_json(prepared / RECORD, record)
