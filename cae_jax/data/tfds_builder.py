"""The data sets, as a TensorFlow Datasets builder that needs no TensorFlow."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cae_jax.config import NAMED
from cae_jax.data import idx

# The IDX files of each split: images and labels.
ARCHIVES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


@dataclasses.dataclass(kw_only=True)
class IdxImagesConfig(tfds.core.BuilderConfig):
    """One data set; its ``name`` is the one in `TrainConfig`.

    Attributes:
        url: directory of the four IDX files; ``checksums.tsv`` holds their sizes and SHA-256, and
            those of their unpacked content under the names without ``.gz``, where they are known.
        classes: names of the ten labels.
        homepage: page that describes the data set.
    """

    url: str
    classes: tuple[str, ...]
    homepage: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return NAMED[self.name]


class IdxImages(tfds.core.GeneratorBasedBuilder):
    """Gray images of ten classes from gzipped IDX files, in their original order.

    The builders shipped with TFDS decompress through ``tf.io.gfile`` and encode PNG with
    TensorFlow. This one leaves downloads and checksums to TFDS, decompresses with Python's gzip,
    and stores raw uint8 tensors as array_record. The class name is part of the path of prepared
    data.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's interface
        IdxImagesConfig(
            name="fashion_mnist",
            description="Images of clothes by Zalando (Xiao, Rasul and Vollgraf 2017).",
            url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            classes=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        ),
        IdxImagesConfig(
            name="mnist",
            description="Handwritten digits (LeCun, Cortes and Burges 1998).",
            url="https://storage.googleapis.com/cvdf-datasets/mnist/",
            classes=tuple("0123456789"),
            homepage="http://yann.lecun.com/exdb/mnist/",
        ),
        IdxImagesConfig(
            name="kmnist",
            description="Cursive Japanese characters (Clanuwat et al. 2018).",
            url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
            homepage="http://codh.rois.ac.jp/kmnist/",
        ),
    ]

    # The IDX files by their names in `ARCHIVES`; None downloads them.
    archives: Mapping[str, Path] | None = None
    # Images and labels of the splits that this object has prepared, by split.
    written: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def source(self) -> IdxImagesConfig:
        """The data set that this builder prepares."""
        assert isinstance(self.builder_config, IdxImagesConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.source.description,
            homepage=self.source.homepage,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=self.source.image_shape,
                        dtype=np.uint8,
                        encoding=tfds.features.Encoding.BYTES,
                    ),
                    "label": tfds.features.ClassLabel(names=list(self.source.classes)),
                }
            ),
            disable_shuffling=True,  # the first ten test images stay the first ten
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        paths: Any = self.archives or dl_manager.download(
            {name: self.source.url + name for pair in ARCHIVES.values() for name in pair}
        )
        self.written = {}
        return {
            split: self._generate_examples(split, paths[images], paths[labels])
            for split, (images, labels) in ARCHIVES.items()
        }

    def _generate_examples(
        self, split: str, images: Any, labels: Any
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        arrays = idx.read_examples(images, labels, self.source.image_shape)
        self.written[split] = arrays
        for index, (image, label) in enumerate(zip(*arrays, strict=True)):
            yield index, {"image": image, "label": int(label)}
