"""A tensorflow-datasets builder for MNIST and its kin that needs no TensorFlow."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cae_jax.data import idx

ARCHIVES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


@dataclasses.dataclass(kw_only=True)
class IdxImagesConfig(tfds.core.BuilderConfig):
    """One data set of the family.

    Attributes:
        url: folder of the four archives; their sizes and sums are in ``checksums.tsv``.
        classes: names of the ten labels.
        homepage: where the data set is described.
    """

    url: str
    classes: tuple[str, ...]
    homepage: str


class IdxImages(tfds.core.GeneratorBasedBuilder):
    """Grey 28 x 28 images with ten classes from gzipped IDX archives, in their original order.

    The builders that ship with TFDS unpack through ``tf.io.gfile`` and encode PNG with TensorFlow.
    This one leaves downloading and checksums to TFDS, unpacks with Python's gzip, and stores raw
    uint8 tensors as array_record.
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

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        assert isinstance(config, IdxImagesConfig)
        return self.dataset_info_from_configs(
            description=config.description,
            homepage=config.homepage,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=(28, 28, 1), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
                    ),
                    "label": tfds.features.ClassLabel(names=list(config.classes)),
                }
            ),
            disable_shuffling=True,  # the first ten test images stay the first ten
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self.builder_config
        assert isinstance(config, IdxImagesConfig)
        paths = dl_manager.download(
            {name: config.url + name for pair in ARCHIVES.values() for name in pair}
        )
        return {
            split: self._generate_examples(paths[images], paths[labels])
            for split, (images, labels) in ARCHIVES.items()
        }

    def _generate_examples(self, images: Any, labels: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        examples = zip(*idx.read_examples(images, labels), strict=True)
        for index, (image, label) in enumerate(examples):
            yield index, {"image": image, "label": int(label)}
