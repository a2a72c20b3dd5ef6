"""Reads the named data sets, which TensorFlow Datasets downloads and prepares as records."""

import contextlib
import dataclasses
import hashlib
import io
import logging
import shutil
from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import tensorflow_datasets as tfds

from cae_jax.config import NAMED
from cae_jax.data.sources import Images, Source, idx, of_arrays
from cae_jax.data.sources.tfds import MARKS
from cae_jax.errors import UserError, naming, reason_of

logger = logging.getLogger(__name__)

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # images [N, H, W] and labels [N] of a split
# The IDX files of each split: images and labels.
ARCHIVES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
# Folders of the IDX files that are part of the package.
SHIPPED = {"fashion_mnist": resources.files("cae_jax.data") / "archives" / "fashion_mnist"}


@dataclasses.dataclass(kw_only=True)
class NamedConfig(tfds.core.BuilderConfig):
    """A data set with a name in `TrainConfig`, of ten classes in four IDX files.

    Attributes:
        classes: names of the labels.
        url: directory of the IDX files; ``checksums.tsv`` holds their sizes and SHA-256, and, if
            known, those of their unpacked content under the names without ``.gz``.
        homepage: page that describes the data set.
    """

    classes: tuple[str, ...]
    url: str
    homepage: str


class CaeImages(tfds.core.GeneratorBasedBuilder):
    """The builder of the named data sets, which needs no TensorFlow.

    TFDS's own builders encode PNG with TensorFlow. This one leaves downloads and checksums to TFDS
    and stores raw uint8 tensors as array_record. Its class name is part of the path of the records.
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

    # Paths of the IDX files by name, where they need no download; their content, once it is read.
    files: dict[str, Path] | None = None
    arrays: Arrays | None = None

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
        self.arrays = arrays = {
            split: (idx.read_images(Path(paths[images])), idx.read_labels(Path(paths[labels])))
            for split, (images, labels) in ARCHIVES.items()
        }
        return {split: self._generate_examples(*pair) for split, pair in arrays.items()}

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image[..., None], "label": int(label)}


def open_named(name: str, root: Path) -> Source:
    """The images of a named data set, whose records are prepared if they are missing or damaged.

    Args:
        name: of the data set.
        root: where TFDS keeps data sets.

    Raises:
        UserError: the host is unreachable, or a downloaded file is not the original one.
    """
    folder = root / CaeImages.name / name / str(CaeImages.VERSION)
    if not folder.exists():
        return _source(name, _prepare(name, root, folder))
    try:
        for mark in MARKS:
            (folder / mark).open("rb").close()
        return _source(name, _read(name, root, folder))
    except UserError as error:
        damage = error.problem
    except FileNotFoundError as error:
        damage = f"{folder} is damaged ({error})"
    except OSError as error:  # TFDS does not tell it from damage
        raise UserError(
            f"data set in {folder} cannot be read ({error}); pass another `data_dir`"
        ) from error
    logger.warning("%s; preparing it again", damage)
    aside = folder.with_name(f"incomplete.{folder.name}-damaged")
    folder.rename(aside)
    try:
        arrays = _prepare(name, root, folder)
    except UserError as error:
        raise UserError(f"{damage} and cannot be prepared again: {error}") from error
    finally:
        if not folder.exists():
            aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
    return _source(name, arrays)


def _source(name: str, arrays: Arrays) -> Source:
    splits = {
        split: Images(
            lambda i, split=split: f"{split}[{i}]",
            f"{name}: {split}",
            len(images),
            partial(iter, [images]),
            labels,
        )
        for split, (images, labels) in arrays.items()
    }
    config: Any = CaeImages.builder_configs[name]
    return of_arrays(splits, {})._replace(classes=config.classes)


def _read(name: str, root: Path, folder: Path) -> Arrays:
    """The images and labels in records, compared with the original files if they are known."""
    config: Any = CaeImages.builder_configs[name]
    found = {}
    for split, files in ARCHIVES.items():
        with naming(folder, "an intact TFDS data set", "prepare it again"):
            builder: Any = CaeImages(config=name, data_dir=str(root))
            records = builder.as_data_source(split)
            examples = records.__getitems__(range(len(records)))
            images = np.stack([example["image"][..., 0] for example in examples])
            labels = np.array([example["label"] for example in examples], np.int32)
        found[split] = images, labels
        for file, array in zip(files, found[split], strict=True):
            known = _checksum(config.url + file.removesuffix(".gz"))
            if known and hashlib.sha256(idx.to_bytes(array)).hexdigest() != known:
                raise UserError(f"{folder} has other images than {file}", "remove it")
    return found


def _prepare(name: str, root: Path, folder: Path) -> Arrays:
    """Writes the records, from shipped or downloaded IDX files; returns their content."""
    import requests  # which TFDS downloads with
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    config: Any = CaeImages.builder_configs[name]
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # where TFDS prints
        tfds.disable_progress_bar()
        builder = CaeImages(config=name, data_dir=str(root))
        try:
            if name in SHIPPED:  # in the same place where the package is a zip, too
                shipped = stack.enter_context(resources.as_file(SHIPPED[name]))
                builder.files = _shipped(shipped, config)
            else:  # one short request: TFDS retries for minutes
                requests.head(config.url, timeout=10)
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    force_checksums_validation=True, try_download_gcs=False
                ),
                file_format="array_record",
            )
            return builder.arrays or _read(name, root, folder)  # which another process wrote
        except NonMatchingChecksumError as error:
            raise UserError(
                f"IDX file is not the original one: {reason_of(error)}; get it from "
                f"{config.homepage}"
            ) from error
        except (requests.RequestException, DownloadError) as error:
            raise UserError(
                f"{urlparse(config.url).hostname} cannot be reached to download {name}; get the "
                f"four IDX files from {config.homepage} and pass their folder as `data`, or "
                f"choose {' or '.join(SHIPPED)}, which is shipped"
            ) from error


def _shipped(folder: Path, config: Any) -> dict[str, Path]:
    """The IDX files that are part of the package, by name."""
    files = {name: folder / name for pair in ARCHIVES.values() for name in pair}
    for name, path in files.items():
        if idx.sha256(path) != _checksum(config.url + name):
            raise UserError(f"{path} is not the original IDX file; install the package again")
    return files


def _checksum(url: str) -> str | None:
    """The recorded SHA-256 of a file; None if it is unknown."""
    infos: Any = CaeImages.url_infos
    return infos[url].checksum if url in infos else None
