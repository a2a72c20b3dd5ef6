"""Prepares the data sets that have a name from IDX files: shipped, downloaded or given ones."""

import contextlib
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from cae_jax.config import Shape
from cae_jax.data import idx, store
from cae_jax.data.decoded import Arrays
from cae_jax.data.source import Item
from cae_jax.data.tfds_builder import ARCHIVES, CaeImages, NamedConfig
from cae_jax.errors import UserError

# Data sets whose IDX files are part of the package.
SHIPPED = ("fashion_mnist",)


class Named:
    """A data set that has a name; a `cae_jax.data.store.Recipe`.

    Args:
        name: of the data set.
        archives: folder of its four IDX files; None takes shipped ones, or downloads them.

    Raises:
        UserError: a file is missing in `archives`, or is not the original one.
    """

    def __init__(self, name: str, archives: str | Path | None) -> None:
        self.name = self.title = name
        self._source: Any = CaeImages.builder_configs[name]
        self._files = None if archives is None else find(name, Path(archives).expanduser())
        self._unpacked = contextlib.ExitStack()  # shipped files, where the package is a zip
        self._written: dict[str, Arrays] = {}

    def open(self) -> None:
        """Finds the IDX files, or whether their host answers."""
        if self._files is None and self.name in SHIPPED:
            shipped = resources.files("cae_jax.data") / "archives" / self.name
            self._files = find(self.name, self._unpacked.enter_context(resources.as_file(shipped)))
        elif self._files is None:
            _check_host(self._source)

    def prepare(self, root: Path) -> dict[str, Arrays]:
        """Prepares the data set; see `cae_jax.data.store.Recipe`."""
        import requests  # which TFDS downloads with
        from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
        from tensorflow_datasets.core.download.util import DownloadError

        builder = CaeImages(config=self.name, data_dir=str(root))
        builder.examples = self._examples
        try:
            with self._unpacked:
                store.write(builder)
        except NonMatchingChecksumError as error:
            raise UserError(
                f"IDX file is not the original one: {' '.join(str(error).split())}; get it from "
                f"{self._source.homepage}"
            ) from error
        except (requests.RequestException, DownloadError) as error:
            raise _unreachable(self._source) from error
        return self._written

    def _examples(self, download: Callable[[dict[str, str]], Any]) -> dict[str, Any]:
        """The images and labels of both splits."""
        names = [name for pair in ARCHIVES.values() for name in pair]
        paths = self._files or download({name: self._source.url + name for name in names})
        examples = {}
        for split, (images, labels) in ARCHIVES.items():
            arrays = idx.read_examples(paths[images], paths[labels], self._source.image_shape)
            examples[split], self._written[split] = zip(*arrays, strict=True), arrays
        return examples

    def check(self, split: str, images: np.ndarray, labels: np.ndarray | None) -> None:
        """Compares records with the original files, where the sums of their content are known."""
        if labels is None:
            raise ValueError(f"the records of {split} have no labels")
        infos: Any = CaeImages.url_infos
        contents = idx.to_bytes(images, labels)
        for name, content in zip(ARCHIVES[split], contents, strict=True):
            info = infos.get(self._source.url + name.removesuffix(".gz"))
            if info and _sha256(content) != info.checksum:
                raise ValueError(f"the records of {split} are not those of {name}")


class NamedImages:
    """The images of a data set that has a name, to be converted; a source.

    See `cae_jax.data.source.Source`.
    """

    splits = ("train", "test")

    def __init__(self, name: str, data_dir: str | Path | None, archives: str | Path | None) -> None:
        source: Any = CaeImages.builder_configs[name]
        self._recipe, self._data_dir = Named(name, archives), data_dir
        self.classes: tuple[str, ...] = source.classes
        self.shape: Shape | None = source.image_shape
        self.notes: dict[str, Any] = {}

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split."""
        images, labels = store.load(self._recipe, split, self._data_dir)
        assert labels is not None
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{self._recipe.title}: {split}[{i}]"
            yield Item(f"{split}[{i}]", name, lambda image=image: image, int(label))


def find(dataset: str, folder: Path) -> dict[str, Path]:
    """The original IDX files in a directory, by their names in `tfds_builder.ARCHIVES`.

    Files are taken unpacked too, or compressed by others, where the sums of their content are
    known.
    """
    names = [name for pair in ARCHIVES.values() for name in pair]
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
    source: Any = CaeImages.builder_configs[dataset]
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
    infos: Any = CaeImages.url_infos
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


def _check_host(source: NamedConfig) -> None:
    """Sends one short request, because TFDS retries for minutes before it gives up."""
    import requests

    try:
        requests.head(source.url, timeout=10)
    except requests.RequestException as error:
        raise _unreachable(source) from error


def _unreachable(source: NamedConfig) -> UserError:
    return UserError(
        f"{urlparse(source.url).hostname} cannot be reached to download {source.name}; get the "
        f"four IDX files from {source.homepage} and pass their directory as `archives`, or choose "
        f"{' or '.join(SHIPPED)}, which is shipped"
    )
