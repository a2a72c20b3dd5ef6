"""Reads the named data sets, which TensorFlow Datasets downloads and prepares as records."""

import contextlib
import dataclasses
import hashlib
import io
import logging
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import tensorflow_datasets as tfds

from cae_jax.config import NAMED, Shape
from cae_jax.data.sources import SPLITS, Item, idx
from cae_jax.data.sources.tfds import MARKS, TfdsFolder
from cae_jax.errors import UserError

logger = logging.getLogger(__name__)

# The IDX files of each split: images and labels.
ARCHIVES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
# Folders of the IDX files that are part of the package.
SHIPPED = {"fashion_mnist": resources.files("cae_jax.data") / "archives" / "fashion_mnist"}
Arrays = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(kw_only=True)
class NamedConfig(tfds.core.BuilderConfig):
    """A data set with a name in `TrainConfig`, of ten classes in four IDX files.

    Attributes:
        classes: names of the labels.
        url: directory of the four IDX files; ``checksums.tsv`` holds their sizes and SHA-256, and
            those of their unpacked content under the names without ``.gz``, where they are known.
        homepage: page that describes the data set.
    """

    classes: tuple[str, ...]
    url: str
    homepage: str


class CaeImages(tfds.core.GeneratorBasedBuilder):
    """The builder of the named data sets, which needs no TensorFlow.

    The builders shipped with TFDS read files through ``tf.io.gfile`` and encode PNG with
    TensorFlow. This one leaves downloads and checksums to TFDS and stores raw uint8 tensors as
    array_record. The class name is part of the path of its records.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's interface
        NamedConfig(
            name="fashion_mnist",
            description="Images of clothes by Zalando (Xiao, Rasul and Vollgraf 2017).",
            url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            classes=(
                *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
                *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            ),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        ),
        NamedConfig(
            name="mnist",
            description="Handwritten digits (LeCun, Cortes and Burges 1998).",
            url="https://storage.googleapis.com/cvdf-datasets/mnist/",
            classes=tuple("0123456789"),
            homepage="http://yann.lecun.com/exdb/mnist/",
        ),
        NamedConfig(
            name="kmnist",
            description="Cursive Japanese characters (Clanuwat et al. 2018).",
            url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
            homepage="http://codh.rois.ac.jp/kmnist/",
        ),
    ]

    # Paths of the IDX files by name; None downloads them.
    files: dict[str, Path] | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        source: Any = self.builder_config
        features: dict[str, Any] = {
            "image": tfds.features.Tensor(
                shape=NAMED[source.name], dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
            ),
            "label": tfds.features.ClassLabel(names=list(source.classes)),
        }
        return self.dataset_info_from_configs(
            description=source.description,
            homepage=source.homepage,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # the first ten test images stay the first ten
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        source: Any = self.builder_config
        names = [name for pair in ARCHIVES.values() for name in pair]
        paths: Any = self.files or dl_manager.download({name: source.url + name for name in names})
        return {
            split: self._generate_examples(Path(paths[images]), Path(paths[labels]))
            for split, (images, labels) in ARCHIVES.items()
        }

    def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, dict]]:
        pairs = zip(idx.iterate_images(images), idx.read_labels(labels), strict=True)
        for index, (image, label) in enumerate(pairs):
            yield index, {"image": image[..., None], "label": int(label)}


class NamedImages:
    """The images of a named data set; a `cae_jax.data.sources.Source`.

    Its records are prepared if they are missing, and again if they are damaged.

    Args:
        name: of the data set.
        root: where TFDS keeps data sets.

    Raises:
        UserError: the host is unreachable, or a downloaded file is not the original one.
    """

    def __init__(self, name: str, root: Path) -> None:
        self._name = name
        self._config: Any = CaeImages.builder_configs[name]
        self.classes: tuple[str, ...] = self._config.classes
        self.splits: tuple[str, ...] = SPLITS
        self.notes: dict[str, Any] = {}
        self.shape: Shape | None = NAMED[name]
        self._arrays = self._load(root)

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split."""
        for i, (image, label) in enumerate(zip(*self._arrays[split], strict=True)):
            name = f"{self._name}: {split}[{i}]"
            yield Item(f"{split}[{i}]", name, lambda image=image: image, int(label))

    def _load(self, root: Path) -> dict[str, Arrays]:
        """The images and labels of each split; damaged records are kept until there are others."""
        folder = root / CaeImages.name / self._name / str(CaeImages.VERSION)
        if not folder.exists():
            self._prepare(root)
            return self._read(folder)
        try:
            for name in MARKS:
                (folder / name).open("rb").close()
            return self._read(folder)
        except (FileNotFoundError, UserError) as error:
            damage = str(error).rpartition(";")[0] or f"{folder} is damaged ({error})"
        except OSError as error:  # TFDS does not tell it from a missing file
            raise UserError(
                f"data set in {folder} cannot be read ({error}); pass another `data_dir`"
            ) from error
        logger.warning("%s; preparing it again", damage)
        aside = folder.with_name(f"incomplete.{folder.name}-damaged")
        folder.rename(aside)
        try:
            self._prepare(root)
        except BaseException as error:
            aside.rename(folder)
            if isinstance(error, UserError):
                raise UserError(f"{damage} and cannot be prepared again: {error}") from error
            raise
        shutil.rmtree(aside, ignore_errors=True)
        return self._read(folder)

    def _read(self, folder: Path) -> dict[str, Arrays]:
        """The images and labels in records, compared with the original files if they are known."""
        source, found = TfdsFolder(folder, ""), {}
        for split, names in ARCHIVES.items():
            items = list(source.items(split))
            images = np.stack([item.read() for item in items])
            labels = np.array([item.label for item in items], np.int32)
            for name, content in zip(names, idx.to_bytes(images, labels), strict=True):
                info = _checksum(self._config.url + name.removesuffix(".gz"))
                if info and hashlib.sha256(content).hexdigest() != info:
                    raise UserError(f"{folder} has other images than {name}; remove it")
            found[split] = images, labels
        return found

    def _prepare(self, root: Path) -> None:
        """Writes the records, from shipped or downloaded IDX files."""
        import requests  # which TFDS downloads with
        from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
        from tensorflow_datasets.core.download.util import DownloadError

        # In the same place where the package is a zip, too.
        with contextlib.ExitStack() as unpacked:
            files = self._shipped(unpacked)
            try:
                if files is None:  # one short request: TFDS retries for minutes
                    requests.head(self._config.url, timeout=10)
                _write(self._name, root, files)
            except NonMatchingChecksumError as error:
                raise UserError(
                    f"IDX file is not the original one: {' '.join(str(error).split())}; get it "
                    f"from {self._config.homepage}"
                ) from error
            except (requests.RequestException, DownloadError) as error:
                raise UserError(
                    f"{urlparse(self._config.url).hostname} cannot be reached to download "
                    f"{self._name}; get the four IDX files from {self._config.homepage} and pass "
                    f"their folder as `data`, or choose {' or '.join(SHIPPED)}, which is shipped"
                ) from error

    def _shipped(self, unpacked: contextlib.ExitStack) -> dict[str, Path] | None:
        """The IDX files that are part of the package, by name; None without any."""
        if self._name not in SHIPPED:
            return None
        folder = unpacked.enter_context(resources.as_file(SHIPPED[self._name]))
        files = {name: folder / name for pair in ARCHIVES.values() for name in pair}
        for name, path in files.items():
            if idx.sha256(path) != _checksum(self._config.url + name):
                raise UserError(f"{path} is not the original IDX file; install the package again")
        return files


def _checksum(url: str) -> str | None:
    """The recorded SHA-256 of a file; None if it is unknown."""
    infos: Any = CaeImages.url_infos
    return infos[url].checksum if url in infos else None


def _write(name: str, root: Path, files: dict[str, Path] | None) -> None:
    """Writes the records of a data set with TFDS, which prints to stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.disable_progress_bar()
        builder = CaeImages(config=name, data_dir=str(root))
        builder.files = files
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                force_checksums_validation=True, try_download_gcs=False
            ),
            file_format="array_record",
        )
