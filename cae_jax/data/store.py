"""Prepares data sets with TensorFlow Datasets, and reads their records.

Both leave a decoded copy of each split beside the records, see `cae_jax.data.decoded`.
"""

import contextlib
import io
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from cae_jax.data import decoded, tfds_folder
from cae_jax.data.decoded import Arrays
from cae_jax.data.tfds_builder import CaeImages
from cae_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where one process at a time has to prepare
    fcntl = None

logger = logging.getLogger(__name__)

# Records that are read in one call.
_BLOCK = 1000


class Recipe(Protocol):
    """How one data set is prepared."""

    @property
    def title(self) -> str:
        """How messages name the data set."""
        ...

    @property
    def name(self) -> str:
        """The name of its folder."""
        ...

    def open(self) -> None:
        """Finds the source; raises a `UserError` where it is missing or out of reach."""
        ...

    def prepare(self, root: Path) -> dict[str, Arrays]:
        """Prepares the data set with `write` below a folder.

        Returns:
            the images and labels of the splits that are still in memory.

        Raises:
            UserError: the source is damaged.
        """
        ...

    def check(self, split: str, images: np.ndarray, labels: np.ndarray | None) -> None:
        """Raises a `ValueError` where records are known to be others than these."""
        ...


def load(recipe: Recipe, split: str, data_dir: str | Path | None) -> Arrays:
    """Reads images and labels of a split; see `cae_jax.data.load_split`.

    A data set that is not there, or damaged, is prepared first.

    Raises:
        UserError: as `Recipe.prepare`, or a directory that is not readable or writable.
    """
    folder = decoded.folder(recipe.name, data_dir)
    before, damage = _identity(folder), ""
    if before is not None:
        try:
            return _read(recipe, folder, split)
        except FileNotFoundError as error:
            damage = str(error)
        except OSError as error:
            raise UserError(
                f"data set in {folder} cannot be read ({error}); pass another `data_dir`"
            ) from error
        except Exception as error:  # TFDS and array_record document no exceptions
            damage = " ".join(str(error).split())[:200] or type(error).__name__
    try:
        with _locked(folder):
            if _identity(folder) == before:  # else another process was faster
                _prepare(recipe, folder, decoded.root(data_dir), damage)
        return _read(recipe, folder, split)
    except UserError as error:
        what = f"data set in {folder} is damaged ({damage}) and cannot be prepared again: "
        raise UserError(f"{what if damage else ''}{error}") from error
    except Exception as error:  # as above; an `OSError` where the disk is full
        raise UserError(
            f"data set {recipe.title} cannot be prepared in {folder} "
            f"({' '.join(str(error).split())[:200]}); free space, or pass a writable `data_dir`"
        ) from error


def _identity(folder: Path) -> tuple[int, int] | None:
    """Tells a directory from another one that replaces it; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time write a data set, and removes what killed processes left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
                for leftover in folder.parent.glob("incomplete.*"):
                    shutil.rmtree(leftover)
        yield


def _prepare(recipe: Recipe, folder: Path, root: Path, damage: str) -> None:
    """Prepares a data set in place of a damaged one, which is kept until then."""
    recipe.open()
    # A warning, so that it goes to stderr: stdout holds the results of a command.
    when = f"again, because it is damaged: {damage}" if damage else "(once)"
    logger.warning("Preparing %s in %s %s", recipe.title, folder, when)
    aside = folder.with_name(f"incomplete.{folder.name}-damaged")
    if folder.exists():
        folder.rename(aside)
    try:
        written = recipe.prepare(root)
    except BaseException:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        raise
    for split, arrays in written.items():
        decoded.write(folder, split, *arrays)
    shutil.rmtree(aside, ignore_errors=True)


def write(builder: CaeImages) -> None:
    """Writes the records of a builder that has its examples."""
    with contextlib.redirect_stdout(io.StringIO()), _in_memory():  # TFDS prints there
        tfds.disable_progress_bar()
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                force_checksums_validation=True, try_download_gcs=False
            ),
            file_format="array_record",
        )


@contextlib.contextmanager
def _in_memory() -> Iterator[None]:
    """Keeps TFDS's writer from its files for more than 1 GB, which take TensorFlow."""
    most = shuffle.MAX_MEM_BUFFER_SIZE
    shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
    try:
        yield
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = most


def _read(recipe: Recipe, folder: Path, split: str) -> Arrays:
    """Reads a prepared split from its cache; rebuilds one that is missing, stale or damaged."""
    if (arrays := decoded.read(folder, split)) is not None:
        return arrays
    images, labels = _read_records(folder, split)
    recipe.check(split, images, labels)
    with contextlib.suppress(OSError), _locked(folder):
        decoded.write(folder, split, images, labels)
    return images, labels


def _read_records(folder: Path, split: str) -> Arrays:
    """Reads the records of a split into one array."""
    for name in tfds_folder.MARKS:
        (folder / name).lstat()  # TFDS does not tell a missing file from one without permission
    builder: Any = tfds.builder_from_directory(folder)
    records = builder.as_data_source(split)
    images = np.empty((len(records), *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(len(records), np.int32) if "label" in builder.info.features else None
    # In blocks: a record alone costs the decompression of its whole neighbourhood.
    for start in range(0, len(records), _BLOCK):
        block = range(start, min(start + _BLOCK, len(records)))
        for i, example in zip(block, records.__getitems__(block), strict=True):
            images[i] = example["image"]
            if labels is not None:
                labels[i] = example["label"]
    return images, labels
