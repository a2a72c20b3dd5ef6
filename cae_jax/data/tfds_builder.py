"""Every source of images, as one TensorFlow Datasets builder that needs no TensorFlow."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cae_jax.config import NAMED, Shape

# The IDX files of each split: images and labels.
ARCHIVES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


Example = tuple[np.ndarray, int | None]


@dataclasses.dataclass(kw_only=True)
class ImagesConfig(tfds.core.BuilderConfig):
    """One data set; its ``name`` is that of the folder of prepared data.

    Attributes:
        image_shape: height, width and channels.
        classes: names of the labels; () without labels.
        homepage: page that describes the data set.
    """

    image_shape: Shape
    classes: tuple[str, ...] = ()
    homepage: str = ""


@dataclasses.dataclass(kw_only=True)
class NamedConfig(ImagesConfig):
    """A data set with a name in `TrainConfig`, of ten classes in four IDX files.

    Attributes:
        url: directory of the four IDX files; ``checksums.tsv`` holds their sizes and SHA-256, and
            those of their unpacked content under the names without ``.gz``, where they are known.
    """

    url: str


class CaeImages(tfds.core.GeneratorBasedBuilder):
    """Images of one shape, with or without labels, in the order of their source.

    The builders shipped with TFDS read files through ``tf.io.gfile`` and encode PNG with
    TensorFlow. This one leaves downloads and checksums to TFDS, is given the decoded images, and
    stores raw uint8 tensors as array_record. The class name is part of the path of prepared data.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's interface
        NamedConfig(
            name="fashion_mnist",
            image_shape=NAMED["fashion_mnist"],
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
        NamedConfig(
            name="mnist",
            image_shape=NAMED["mnist"],
            description="Handwritten digits (LeCun, Cortes and Burges 1998).",
            url="https://storage.googleapis.com/cvdf-datasets/mnist/",
            classes=tuple("0123456789"),
            homepage="http://yann.lecun.com/exdb/mnist/",
        ),
        NamedConfig(
            name="kmnist",
            image_shape=NAMED["kmnist"],
            description="Cursive Japanese characters (Clanuwat et al. 2018).",
            url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
            homepage="http://codh.rois.ac.jp/kmnist/",
        ),
    ]

    # Gives the images and labels of each split; gets a function that downloads URLs by name.
    examples: Callable[[Callable[[dict[str, str]], Any]], Mapping[str, Iterable[Example]]]

    # Called at the end, to write more beside the records.
    finish: Callable[[], None] = staticmethod(lambda: None)

    @property
    def source(self) -> ImagesConfig:
        """The data set that this builder prepares."""
        assert isinstance(self.builder_config, ImagesConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "image": tfds.features.Tensor(
                shape=self.source.image_shape,
                dtype=np.uint8,
                encoding=tfds.features.Encoding.BYTES,
            )
        }
        if self.source.classes:
            features["label"] = _label(self.source.classes)
        return self.dataset_info_from_configs(
            description=self.source.description,
            homepage=self.source.homepage,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # the first ten test images stay the first ten
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        splits = self.examples(dl_manager.download)
        last = [*splits][-1]
        return {
            split: self._generate_examples(examples, split == last)
            for split, examples in splits.items()
        }

    def _generate_examples(
        self, examples: Iterable[Example], last: bool
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(examples):
            labels = {"label": int(label)} if label is not None else {}
            yield index, {"image": image, **labels}
        if last:
            self.finish()


def _label(classes: tuple[str, ...]) -> tfds.features.ClassLabel:
    """The feature of labels; without names where TFDS's file of them, one a line, has no place."""
    if all(name.isprintable() and name == name.strip() for name in classes):
        return tfds.features.ClassLabel(names=list(classes))
    return tfds.features.ClassLabel(num_classes=len(classes))
