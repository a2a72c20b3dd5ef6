"""Keeps decoded copies of prepared splits, which are read without TensorFlow Datasets.

A copy lies beside the records and names them; it counts while they are unchanged.
"""

import contextlib
import os
import zipfile
from pathlib import Path

import numpy as np

from cae_jax import atomic

Arrays = tuple[np.ndarray, np.ndarray]


def find(dataset: str, data_dir: str | Path | None, split: str) -> Arrays | None:
    """Reads a split from where TFDS keeps its data set; see `cae_jax.data.load_split`."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        root = Path(data_dir or default).expanduser().absolute()
    except RuntimeError:  # no home directory
        return None
    return read(root / "idx_images" / dataset / "1.0.0", split)


def read(prepared: Path, split: str) -> Arrays | None:
    """Reads images and labels; None without an intact copy of the records as they are."""
    try:
        # The zip format verifies a CRC-32 of each array.
        with _path(prepared, split).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if arrays["fingerprint"].item() == _fingerprint(prepared, split):
                return arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def write(prepared: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes a copy; without one (full disk, read-only directory) the next start is slower."""
    with (
        contextlib.suppress(OSError),
        atomic.replacing(_path(prepared, split)) as temporary,
        temporary.open("wb") as file,
    ):
        fingerprint = _fingerprint(prepared, split)
        np.savez(file, fingerprint=fingerprint, images=images, labels=labels.astype(np.int32))


def _path(prepared: Path, split: str) -> Path:
    return prepared / f"{split}.cache.npz"


def _fingerprint(prepared: Path, split: str) -> str:
    """Identifies the records; changes whenever they do."""
    paths = sorted(prepared.glob(f"idx_images-{split}.array_record*"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return repr((prepared.parts[-3:], stats))
