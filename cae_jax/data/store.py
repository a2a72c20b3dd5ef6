"""Data sets as arrays: `load` prepares once with tensorflow-datasets, then reads a cache."""

import contextlib
import fcntl
import io
import shutil
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from cae_jax import atomic
from cae_jax.data import tfds_builder
from cae_jax.errors import UserError

# Data sets whose archives travel with the package.
SHIPPED = ("fashion_mnist",)


def load(
    config: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    archives: str | Path | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Loads a split of a data set, preparing it first if need be.

    Args:
        config: ``"fashion_mnist"``, ``"mnist"`` or ``"kmnist"``.
        split: ``"train"`` (60,000 examples) or ``"test"`` (10,000).
        data_dir: where TFDS keeps data sets; by default ``TFDS_DATA_DIR``, else TFDS's own default.
        archives: folder with the four original ``.gz`` archives. By default those shipped with the
            package are taken, or they are downloaded.

    Returns:
        images uint8 ``[N, 28, 28, 1]`` and labels int32 ``[N]``, in the original order.

    Raises:
        UserError: unknown name, damaged or missing archive, host out of reach, folder not writable.
    """
    names = [known.name for known in tfds_builder.IdxImages.BUILDER_CONFIGS]
    if config not in names:
        raise UserError(f"data set is {config!r}; it takes {', '.join(names)}")
    if split not in tfds_builder.ARCHIVES:
        raise UserError(f"split is {split!r}; it takes {', '.join(tfds_builder.ARCHIVES)}")
    try:
        builder = tfds_builder.IdxImages(config=config, data_dir=_expand(data_dir))
        if not builder.data_path.exists():
            with _locked(builder):
                if not builder.data_path.exists():  # no other process has been faster
                    _prepare(builder, archives)
            builder = tfds_builder.IdxImages(config=config, data_dir=_expand(data_dir))
    except OSError as error:
        raise UserError(
            f"data set {config} cannot be prepared ({error}); give a writable --data-dir"
        ) from error
    try:
        return _read_cached(builder, split)
    except Exception as error:  # TFDS and array_record raise what they please
        raise UserError(
            f"data set in {builder.data_dir} is damaged ({' '.join(str(error).split())[:200]}); "
            "delete that folder to have it prepared again"
        ) from error


def _expand(path: str | Path | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


@contextlib.contextmanager
def _locked(builder: tfds_builder.IdxImages) -> Iterator[None]:
    """Only one process at a time writes a data set, and removes what a killed one left of it."""
    folder = Path(builder.data_path).parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for leftover in folder.glob("incomplete.*"):
            shutil.rmtree(leftover)
        yield


def _prepare(builder: tfds_builder.IdxImages, archives: str | Path | None) -> None:
    """Writes the data set below its data_dir, atomically."""
    import requests  # what TFDS downloads with
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    config = builder.builder_config
    assert isinstance(config, tfds_builder.IdxImagesConfig)
    with contextlib.ExitStack() as stack:
        if archives is None and config.name in SHIPPED:
            shipped = resources.files("cae_jax.data") / "archives" / config.name
            archives = stack.enter_context(resources.as_file(shipped))
        elif archives is not None:
            _check_archives(Path(archives))
        else:
            _check_host(config)
        print(f"Preparing {config.name} in {builder.data_dir} (once)", file=sys.stderr)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # TFDS's announcement
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
                f"archive is not the original one: {' '.join(str(error).split())}"
            ) from error
        except (requests.RequestException, DownloadError) as error:
            raise _unreachable(config) from error


def _check_archives(folder: Path) -> None:
    names = [name for pair in tfds_builder.ARCHIVES.values() for name in pair]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"archives folder {folder} has no {', '.join(missing)}; "
            f"it takes the four files {', '.join(names)}"
        )


def _check_host(config: tfds_builder.IdxImagesConfig) -> None:
    """One quick request, because TFDS tries for minutes before it gives up."""
    import requests

    try:
        requests.head(config.url, timeout=10)
    except requests.RequestException as error:
        raise _unreachable(config) from error


def _unreachable(config: tfds_builder.IdxImagesConfig) -> UserError:
    return UserError(
        f"{urlparse(config.url).hostname} cannot be reached to download {config.name}; get the "
        f"four archives from {config.homepage} and give their folder with --archives, or take "
        f"{' or '.join(SHIPPED)}, which is shipped"
    )


def _read_cached(builder: tfds_builder.IdxImages, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The split from its cache, which is rebuilt where it is missing, stale or damaged."""
    cache = Path(builder.data_dir) / f"{split}.cache.npz"
    fingerprint = _fingerprint(builder, split)
    try:
        # zip checks a CRC-32 of each array
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if arrays["fingerprint"].item() == fingerprint:
                return arrays["images"], arrays["labels"]
    except Exception:  # whatever is wrong with a cache, the remedy is the same
        pass
    images, labels = _read_records(builder, split)
    # A cache that cannot be written (full disk, read-only folder) costs time, nothing else.
    with (
        contextlib.suppress(OSError),
        _locked(builder),
        atomic.replacing(cache) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez(file, fingerprint=fingerprint, images=images, labels=labels)
    return images, labels


def _read_records(builder: tfds_builder.IdxImages, split: str) -> tuple[np.ndarray, np.ndarray]:
    source: Any = builder.as_data_source(split)  # pyright: ignore[reportCallIssue] - hidden by TFDS's decorator
    images = np.empty((len(source), 28, 28, 1), np.uint8)
    labels = np.empty(len(source), np.int32)
    for i in range(len(source)):
        example = source[i]
        images[i], labels[i] = example["image"], example["label"]
    return images, labels


def _fingerprint(builder: tfds_builder.IdxImages, split: str) -> str:
    """Changes whenever the records that the cache was read from do."""
    paths = [Path(name) for name in builder.info.splits[split].filepaths]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return repr((builder.info.full_name, stats))
