"""Prepares images once as .npy files, which later starts map to memory.

A folder holds, for each split, ``SPLIT_images.npy``, uint8 ``[N, height, width, channels]``, and
with labels ``SPLIT_labels.npy``, int32 ``[N]``; ``source.json`` describes them, with their SHA-256.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cae_jax import atomic
from cae_jax.config import TrainConfig
from cae_jax.data.decoding import Converter
from cae_jax.data.encoded import Encoded
from cae_jax.data.path import PREPARED, Found, Location
from cae_jax.data.preparation import PROGRESS, write
from cae_jax.data.sources import SPLITS, File, Item, block_length, items_of
from cae_jax.data.workers import ShortageError
from cae_jax.errors import UserError, reason_of

try:
    import fcntl
except ImportError:  # Windows, where one process at a time has to prepare
    fcntl = None

logger = logging.getLogger(__name__)

Arrays = tuple[np.ndarray, np.ndarray | None]
# The array of images that stay in their files, from their checks and the record.
Encode = Callable[[np.ndarray, dict[str, Any]], Encoded]
RECORD = "source.json"
_INCOMPLETE = "incomplete."  # start of the names of folders that are being written
FORM = 2  # of the files; others are prepared again
# The fields of a config that decide what is prepared from a source.
_OPTIONS = ("image_size", "resize", "channels", "background", "split", "skip_unreadable")
# Options that the folder's name has where they are given.
_LATER_OPTIONS = ("black", "white", "frames", "max_pixels", "include", "exclude", "pairs", "decode")


class Prepared(NamedTuple):
    """Prepared images, mapped to memory and read-only.

    Attributes:
        train: images uint8 ``[N, height, width, channels]``, and labels int32 ``[N]`` or None.
        test, validation: likewise; the test images also validate if there are no others.
        classes: names of the labels, in order; () without labels.
        digest: SHA-256 of the images, in this order.
        divided: whether the source is one split, which `split` divides.
        skipped: number of unreadable images that are left out.
        levels: their black and white, where the config's `white` is ``"auto"``.
        folder: where their files lie.
    """

    train: tuple[np.ndarray | Encoded, np.ndarray | None]
    test: Arrays
    validation: Arrays
    classes: tuple[str, ...]
    digest: str
    divided: bool
    skipped: int
    levels: tuple[float, float] | None
    folder: Path


def load(
    config: TrainConfig,
    location: Location,
    found: Found | None,
    root: Path,
    verify: bool,
    workers: int,
) -> Prepared:
    """Maps the images of a config to memory; prepares them if they are missing or damaged.

    Args:
        config, location: which images, what they are converted to, and where they are.
        found: what lies there; None if the source is gone, so that its newest copy is read.
        root: of all prepared data.
        verify: compare all bytes with their SHA-256; otherwise sizes and headers.
        workers: number of processes that decode images.

    Raises:
        UserError: see `cae_jax.data.load_split`.
    """
    if found is None:
        folder = newest_copy(config, location, root)
        logger.warning("%s is gone; reading its prepared copy in %s", location.data, folder)
    else:
        folder = _folder(config, location, root, found.files)
    encode = partial(_encoded, config, location, found, workers)
    prepared, damage = _try(folder, verify, encode)
    if prepared is not None:
        return prepared
    if found is None:
        raise UserError(
            f"{folder} is damaged ({damage}), and its source {location.data} is gone; restore that"
        )
    try:
        return _prepare(config, location, found, folder, verify, workers, encode)
    except UserError as error:
        what = f"{folder} is damaged ({damage}) and cannot be prepared again: " if damage else ""
        raise UserError(f"{what}{error.problem}", error.advice) from error
    except Exception as error:  # TFDS documents none; an `OSError` where the disk is full
        raise UserError(
            f"data set {location.data} cannot be prepared in {folder} ({reason_of(error)}); free "
            "space, or pass a writable `data_dir`"
        ) from error


def _prepare(
    config: TrainConfig,
    location: Location,
    found: Found,
    folder: Path,
    verify: bool,
    workers: int,
    encode: Encode,
) -> Prepared:
    with _locked(folder):
        prepared, damage = _try(folder, verify, encode)  # another process may have been faster
        if prepared is not None:
            return prepared
        when = f"again, because it is damaged: {damage}" if damage else "(once)"
        # A warning, so that it goes to stderr: stdout holds the results of a command.
        logger.warning("Preparing %s in %s %s", location.data, folder, when)
        with _replacing(folder) as temporary:
            record = write(temporary, found.open(), config, location.data, workers)
            atomic.write_json(temporary / RECORD, record)
        # Not removed: runs may have begun with those, and their files may be gone.
        kept = [*_copies(folder), *folder.parent.glob(f"{_INCOMPLETE}*")]
        if others := sorted(str(each) for each in kept if each != folder):
            logger.warning("Earlier states are in %s, which may be removed", ", ".join(others))
        return _map(folder, False, encode)


def newest_copy(config: TrainConfig, location: Location, root: Path) -> Path:
    """The newest folder that was prepared from a location with the options of a config.

    Raises:
        UserError: there is none.
    """
    copies = _copies(_folder(config, location, root, []))
    if not copies:
        raise location.missing or FileNotFoundError(location.data)
    return max(copies, key=lambda each: each.stat().st_mtime_ns)


def _copies(folder: Path) -> list[Path]:
    """All folders that were prepared from the location and with the options of one."""
    start = folder.name.rpartition("-")[0]
    return [each.parent for each in folder.parent.glob(f"{start}-*/{RECORD}")]


def _folder(config: TrainConfig, location: Location, root: Path, files: list[File]) -> Path:
    """The folder of prepared data, named after the path, the options and the files."""
    options = {name: getattr(config, name) for name in _OPTIONS}
    for name in _LATER_OPTIONS:
        if (value := getattr(config, name)) != getattr(TrainConfig, name):
            options[name] = value
    name = location.path.name
    if re.fullmatch(r"[\d.]+", name):  # the version of a TFDS data set
        name = location.path.parent.name
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:30] or "images"
    state = "".join(f"{key}\0{size}\0{changed}\0" for key, size, changed in files)
    sums = _short_sum(repr((FORM, location.data, options))), _short_sum(state)
    return root / PREPARED / "-".join([slug, *sums])


def _short_sum(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def _try(folder: Path, verify: bool, encode: Encode) -> tuple[Prepared | None, str]:
    """What is prepared in a folder, and what is wrong with it; neither if it is missing."""
    if not folder.exists():
        return None, ""
    try:
        return _map(folder, verify, encode), ""
    except PermissionError as error:
        raise UserError(
            f"data set in {folder} cannot be read ({error}); pass another `data_dir`"
        ) from error
    except Exception as error:  # the type depends on the damage
        return None, reason_of(error)


def _map(folder: Path, verify: bool, encode: Encode) -> Prepared:
    """Maps the files of a folder to memory; raises anything where they are damaged."""
    record = json.loads((folder / RECORD).read_text("utf-8"))
    arrays: dict[str, Any] = {}
    for name, (dtype, shape) in record["arrays"].items():
        file = folder / f"{name}.npy"
        array: Any = np.load(file, mmap_mode="r", allow_pickle=False)
        if (array.dtype.name, list(array.shape)) != (dtype, shape):
            raise ValueError(f"{file.name} has the shape {list(array.shape)}, expected {shape}")
        if file.stat().st_size != array.offset + array.nbytes:
            raise ValueError(f"{file.name} has {file.stat().st_size} bytes")
        arrays[name] = np.asarray(array)
    if "train_checks" in arrays:
        arrays = {"train_images": encode(arrays.pop("train_checks"), record), **arrays}
    for kind, expected in record["sha256"].items() if verify else ():
        found = digest(*(array for name, array in arrays.items() if name.endswith(kind)))
        if found != expected:
            raise ValueError(f"the SHA-256 of the {kind} is {found}, expected {expected}")
    splits = {
        split: (arrays[f"{split}_images"], arrays.get(f"{split}_labels"))
        for split in SPLITS
        if f"{split}_images" in arrays
    }
    splits.setdefault("validation", splits["test"])
    levels = record.get("levels")  # earlier versions have neither these nor `divided`
    return Prepared(
        **splits,
        classes=tuple(record["classes"]),
        digest=record["sha256"]["images"],
        divided=record.get("divided", False),
        skipped=record["skipped"],
        levels=levels and tuple(levels),
        folder=folder,
    )


def _encoded(
    config: TrainConfig,
    location: Location,
    found: Found | None,
    workers: int,
    checks: np.ndarray,
    record: dict[str, Any],
) -> Encoded:
    """The training images of a config, which stay in their files."""

    def items() -> list[Item]:
        if found is None:
            raise location.missing or FileNotFoundError(location.data)
        return [*items_of(found.open(), "train", config.split)]

    levels, (*size, channels) = record["levels"], record["image_shape"]
    converter = Converter(dataclasses.replace(config, levels=levels), location.data)
    converter.decide(tuple(size), channels // 2 if config.pairs else channels, "")
    return Encoded((len(checks), *size, channels), checks, items, converter, workers)


def digest(*arrays: np.ndarray | Encoded) -> str:
    """The SHA-256 of the bytes of arrays, one after the other."""
    total = hashlib.sha256()
    for array in arrays:
        length = block_length(array.shape, array.dtype)
        for start in range(0, len(array), length):
            total.update(np.ascontiguousarray(array[start : start + length]))
    return total.hexdigest()


def kept_digest(folder: Path, *arrays: np.ndarray | Encoded) -> str:
    """The `digest` of the first images of each split, which is kept in their folder."""
    path = folder / f"first-{'-'.join(str(len(array)) for array in arrays)}.sha256"
    with contextlib.suppress(OSError):
        if re.fullmatch("[0-9a-f]{64}", kept := path.read_text()):
            return kept
    found = digest(*arrays)
    with contextlib.suppress(OSError):  # others may have prepared them, for reading only
        atomic.write_text(path, found)
    return found


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time prepare, and removes what killed processes left.

    Not what another one can continue: preparing the same images here, or others.
    """
    root, mine = folder.parent, f"{_INCOMPLETE}{folder.name}"
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
                earlier = mine.rpartition("-")[0]  # of the source and options
                for leftover in [*root.glob(f"{_INCOMPLETE}*"), *root.glob(f"*/{_INCOMPLETE}*")]:
                    changed = leftover.name.startswith(earlier) and leftover.name != mine
                    if changed or not (leftover / PROGRESS).exists():
                        shutil.rmtree(leftover)
        yield


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yields a folder that replaces `folder` on success; a damaged one is kept until then.

    After a signal or a shortage, the folder stays as it is, to be continued.
    """
    temporary = folder.with_name(f"{_INCOMPLETE}{folder.name}")
    aside = folder.with_name(f"{temporary.name}-damaged")
    temporary.mkdir(exist_ok=True)
    try:
        yield temporary
        atomic.sync_tree(temporary)
        (temporary / PROGRESS).unlink(missing_ok=True)
        if folder.exists():
            folder.rename(aside)
        temporary.rename(folder)
    except BaseException as error:
        refused = isinstance(error, UserError) and not isinstance(error, ShortageError)
        if refused or not (temporary / PROGRESS).exists():
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
