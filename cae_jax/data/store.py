"""Prepares data sets with TensorFlow Datasets, and reads their records.

Both leave a decoded copy of each split beside the records, see `cae_jax.data.decoded`.
"""

import contextlib
import gzip
import hashlib
import io
import logging
import shutil
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from cae_jax.data import decoded, idx, tfds_builder
from cae_jax.data.tfds_builder import IdxImages
from cae_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where one process at a time has to prepare
    fcntl = None

logger = logging.getLogger(__name__)

# Data sets whose IDX files are part of the package.
SHIPPED = ("fashion_mnist",)
# Records that are read in one call.
_BLOCK = 1000


def load(
    dataset: str, split: str, data_dir: str | Path | None, archives: str | Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads images and labels of a split; see `cae_jax.data.load_split`.

    A data set that is not there, or damaged, is prepared first.

    Raises:
        UserError: damaged or missing IDX file, host unreachable, directory not readable or
            writable.
    """
    root = _root(data_dir)
    folder = root / IdxImages.name / dataset / str(IdxImages.VERSION)
    files = None if archives is None else _find(dataset, Path(archives).expanduser())
    before, damage = _identity(folder), ""
    if before is not None:
        try:
            return _read(root, dataset, split)
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
                _prepare(root, dataset, files, damage)
        return _read(root, dataset, split)
    except UserError as error:
        what = f"data set in {folder} is damaged ({damage}) and cannot be prepared again: "
        raise UserError(f"{what if damage else ''}{error}") from error
    except Exception as error:  # as above; an `OSError` where the disk is full
        raise UserError(
            f"data set {dataset} cannot be prepared in {folder} ({' '.join(str(error).split())}); "
            "free space, or pass a writable `data_dir`"
        ) from error


def _root(data_dir: str | Path | None) -> Path:
    try:
        return Path(constants.DATA_DIR if data_dir is None else data_dir).expanduser()
    except RuntimeError as error:  # as in a container whose user has no name
        raise UserError("there is no home directory to keep data in; pass `data_dir`") from error


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


def _prepare(root: Path, dataset: str, files: dict[str, Path] | None, damage: str) -> None:
    """Writes a data set atomically.

    Args:
        root: directory of prepared data sets.
        dataset: name of the data set.
        files: its IDX files; None takes the shipped ones, or downloads them.
        damage: what is wrong with the one that is there.
    """
    import requests  # which TFDS downloads with
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    folder = root / IdxImages.name / dataset / str(IdxImages.VERSION)
    source: Any = IdxImages.builder_configs[dataset]
    with contextlib.ExitStack() as stack:
        if files is None and dataset in SHIPPED:
            shipped = resources.files("cae_jax.data") / "archives" / dataset
            files = _find(dataset, stack.enter_context(resources.as_file(shipped)))
        elif files is None:
            _check_host(source)
        # A warning, so that it goes to stderr: stdout holds the results of a command.
        when = f"again, because it is damaged: {damage}" if damage else "(once)"
        logger.warning("Preparing %s in %s %s", dataset, folder, when)
        aside = folder.with_name(f"incomplete.{folder.name}-damaged")
        if folder.exists():
            folder.rename(aside)
        builder = IdxImages(config=dataset, data_dir=str(root))
        builder.archives = files
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # TFDS prints there
        tfds.disable_progress_bar()
        try:
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    force_checksums_validation=True, try_download_gcs=False
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
    for split, arrays in builder.written.items():
        decoded.write(folder, split, *arrays)
    shutil.rmtree(aside, ignore_errors=True)


def _find(dataset: str, folder: Path) -> dict[str, Path]:
    """The original IDX files in a directory, by their names in `tfds_builder.ARCHIVES`.

    Files are taken unpacked too, or compressed by others, where the sums of their content are
    known.
    """
    names = [name for pair in tfds_builder.ARCHIVES.values() for name in pair]
    files = {name: folder / name for name in names}
    for name, path in files.items():
        if not path.is_file():
            files[name] = path.with_suffix("")
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise UserError(
            f"`archives` is {folder}, which has no {', '.join(missing)}; "
            f"it takes a directory with the four files {', '.join(names)}"
        )
    source: Any = IdxImages.builder_configs[dataset]
    for name, path in files.items():
        try:
            original = _is_original(path, source.url + name)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}); grant read permission") from error
        if not original:
            raise UserError(
                f"{path} is not the original IDX file of {dataset}, or has a wrong checksum; get "
                f"it from {source.homepage}"
            )
    return files


def _is_original(path: Path, url: str) -> bool:
    """Whether a file, or its unpacked content, has the recorded size and SHA-256."""
    infos: Any = IdxImages.url_infos
    packed, unpacked = infos[url], infos.get(url.removesuffix(".gz"))
    if path.stat().st_size == packed.size and _sha256(path.read_bytes()) == packed.checksum:
        return True
    if unpacked is None:
        return False
    try:
        with idx.open_idx(path) as file:
            content = file.read(unpacked.size + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return False
    return _sha256(content) == unpacked.checksum


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_host(source: tfds_builder.IdxImagesConfig) -> None:
    """Sends one short request, because TFDS retries for minutes before it gives up."""
    import requests

    try:
        requests.head(source.url, timeout=10)
    except requests.RequestException as error:
        raise _unreachable(source) from error


def _unreachable(source: tfds_builder.IdxImagesConfig) -> UserError:
    return UserError(
        f"{urlparse(source.url).hostname} cannot be reached to download {source.name}; get the "
        f"four IDX files from {source.homepage} and pass their directory as `archives`, or choose "
        f"{' or '.join(SHIPPED)}, which is shipped"
    )


def _read(root: Path, dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a prepared split from its cache; rebuilds one that is missing, stale or damaged."""
    builder = IdxImages(config=dataset, data_dir=str(root))
    prepared = Path(builder.data_dir)
    if (arrays := decoded.read(prepared, split)) is not None:
        return arrays
    images, labels = _read_records(builder, split)
    with contextlib.suppress(OSError), _locked(prepared):
        decoded.write(prepared, split, images, labels)
    return images, labels


def _read_records(builder: IdxImages, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the records of a split.

    Raises:
        ValueError: they are not those of the original files, where the sums of these are known.
    """
    records: Any = builder.as_data_source(split)  # pyright: ignore[reportCallIssue] - hidden by TFDS's decorator
    images = np.empty((len(records), *builder.source.image_shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    # In blocks: a record alone costs the decompression of its whole neighbourhood.
    for start in range(0, len(records), _BLOCK):
        block = range(start, min(start + _BLOCK, len(records)))
        for i, example in zip(block, records.__getitems__(block), strict=True):
            images[i], labels[i] = example["image"], example["label"]
    infos: Any = IdxImages.url_infos
    for name, content in zip(
        tfds_builder.ARCHIVES[split], idx.to_bytes(images, labels), strict=True
    ):
        info = infos.get(builder.source.url + name.removesuffix(".gz"))
        if info and _sha256(content) != info.checksum:
            raise ValueError(f"the records of {split} are not those of {name}")
    return images, labels
