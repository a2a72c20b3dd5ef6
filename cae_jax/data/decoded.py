"""Keeps decoded copies of prepared splits, which are read without TensorFlow Datasets.

A copy lies beside the records and names them; it counts while they are unchanged.
"""

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cae_jax import atomic
from cae_jax.data.files import PREPARED
from cae_jax.errors import UserError

# The class of the builder as a part of paths, and its version.
BUILDER, VERSION = PREPARED, "1.0.0"
Arrays = tuple[np.ndarray, np.ndarray | None]


def root(data_dir: str | Path | None) -> Path:
    """Where TFDS keeps data sets.

    Raises:
        UserError: there is no home directory to keep them in.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return Path(data_dir or default).expanduser().absolute()
    except RuntimeError as error:  # as in a container whose user has no name
        raise UserError("there is no home directory to keep data in; pass `data_dir`") from error


def folder(name: str, data_dir: str | Path | None) -> Path:
    """The folder of a prepared data set, which need not exist; raises like `root`."""
    return root(data_dir) / BUILDER / name / VERSION


def read(prepared: Path, split: str) -> Arrays | None:
    """Reads images and labels; None without an intact copy of the records as they are."""
    try:
        # The zip format verifies a CRC-32 of each array.
        with _path(prepared, split).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if arrays["fingerprint"].item() == _fingerprint(prepared, split):
                return arrays["images"], arrays.get("labels")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def write(prepared: Path, split: str, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Writes a copy; without one (full disk, read-only directory) the next start is slower."""
    with (
        contextlib.suppress(OSError),
        atomic.replacing(_path(prepared, split)) as temporary,
        temporary.open("wb") as file,
    ):
        arrays: Any = {"fingerprint": _fingerprint(prepared, split), "images": images}
        if labels is not None:
            arrays["labels"] = labels.astype(np.int32)
        np.savez(file, **arrays)


def _path(prepared: Path, split: str) -> Path:
    return prepared / f"{split}.cache.npz"


def _fingerprint(prepared: Path, split: str) -> str:
    """Identifies the records; changes whenever they do."""
    paths = sorted(prepared.glob(f"{BUILDER}-{split}.array_record*"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return repr((prepared.parts[-3:], stats))
