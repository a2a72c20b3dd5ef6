"""Prepares data sets with TensorFlow Datasets, and reads their records.

Both leave a decoded copy of each split beside the records, see `cae_jax.data.decoded`.
"""

import contextlib
import fcntl
import io
import logging
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from cae_jax.data import decoded
from cae_jax.data.tfds_builder import IdxImages, IdxImagesConfig
from cae_jax.errors import UserError

logger = logging.getLogger(__name__)

# Data sets whose IDX files are part of the package.
SHIPPED = ("fashion_mnist",)
# Records that are read in one call.
_BLOCK = 1000


def prepare(dataset: str, data_dir: str | Path | None, archives: str | Path | None) -> IdxImages:
    """Writes a data set to disk unless it is there; see `cae_jax.data.load_split`.

    Raises:
        UserError: damaged or missing IDX file, host unreachable, directory not writable.
    """
    data_dir = None if data_dir is None else str(Path(data_dir).expanduser().absolute())
    try:
        builder = IdxImages(config=dataset, data_dir=data_dir)
        if not builder.data_path.exists():
            with _locked(builder):
                if not builder.data_path.exists():  # another process may have been faster
                    _prepare(builder, archives)
                    for split, arrays in builder.written.items():
                        decoded.write(Path(builder.data_dir), split, *arrays)
            builder = IdxImages(config=dataset, data_dir=data_dir)
    except OSError as error:
        raise UserError(
            f"data set {dataset} cannot be prepared ({error}); pass a writable `data_dir`"
        ) from error
    return builder


def read(builder: IdxImages, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads images and labels of a prepared split; see `cae_jax.data.load_split`.

    Raises:
        UserError: the prepared data set is damaged.
    """
    try:
        images, labels = _read_records(builder, split)
    except Exception as error:  # TFDS and array_record document no exceptions
        raise UserError(
            f"data set in {builder.data_dir} is damaged ({' '.join(str(error).split())[:200]}); "
            "delete that directory to have it prepared again"
        ) from error
    with contextlib.suppress(OSError), _locked(builder):
        decoded.write(Path(builder.data_dir), split, images, labels)
    return images, labels


@contextlib.contextmanager
def _locked(builder: IdxImages) -> Iterator[None]:
    """Lets one process at a time write a data set, and removes what killed processes left."""
    folder = Path(builder.data_path).parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for leftover in folder.glob("incomplete.*"):
            shutil.rmtree(leftover)
        yield


def _prepare(builder: IdxImages, archives: str | Path | None) -> None:
    """Writes the data set atomically."""
    import requests  # which TFDS downloads with
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    source = builder.source
    with contextlib.ExitStack() as stack:
        if archives is None and source.name in SHIPPED:
            shipped = resources.files("cae_jax.data") / "archives" / source.name
            archives = stack.enter_context(resources.as_file(shipped))
        elif archives is None:
            _check_host(source)
        # A warning, so that it goes to stderr: stdout holds the results of a command.
        logger.warning("Preparing %s in %s (once)", source.name, builder.data_dir)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # TFDS prints there
        tfds.disable_progress_bar()
        try:
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    manual_dir=archives, force_checksums_validation=True, try_download_gcs=False
                ),
                file_format="array_record",
            )
        except NonMatchingChecksumError as error:
            raise UserError(
                f"IDX file is not the original one: {' '.join(str(error).split())}; get it from "
                f"{source.homepage}"
            ) from error
        except (requests.RequestException, DownloadError) as error:
            raise _unreachable(source) from error


def _check_host(source: IdxImagesConfig) -> None:
    """Sends one short request, because TFDS retries for minutes before it gives up."""
    import requests

    try:
        requests.head(source.url, timeout=10)
    except requests.RequestException as error:
        raise _unreachable(source) from error


def _unreachable(source: IdxImagesConfig) -> UserError:
    return UserError(
        f"{urlparse(source.url).hostname} cannot be reached to download {source.name}; get the "
        f"four IDX files from {source.homepage} and pass their directory as `archives`, or choose "
        f"{' or '.join(SHIPPED)}, which is shipped"
    )


def _read_records(builder: IdxImages, split: str) -> tuple[np.ndarray, np.ndarray]:
    records: Any = builder.as_data_source(split)  # pyright: ignore[reportCallIssue] - hidden by TFDS's decorator
    images = np.empty((len(records), *builder.source.image_shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    # In blocks: a record alone costs the decompression of its whole neighbourhood.
    for start in range(0, len(records), _BLOCK):
        block = range(start, min(start + _BLOCK, len(records)))
        for i, example in zip(block, records.__getitems__(block), strict=True):
            images[i], labels[i] = example["image"], example["label"]
    return images, labels
