"""Image data sets as uint8 arrays: `load` gives what a config trains on, `load_split` one split."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cae_jax.config import IMAGE_SHAPES, TrainConfig
from cae_jax.data import decoded
from cae_jax.errors import UserError

SPLITS = ("train", "test")


class Split(NamedTuple):
    """A data set, split into training and test images.

    Attributes:
        train: training images, uint8 ``[N, height, width, channels]``.
        test: test images, uint8 ``[N, height, width, channels]``.
        test_labels: labels of the test images, int32 ``[N]``.
    """

    train: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def load(
    config: TrainConfig,
    *,
    data_dir: str | Path | None = None,
    archives: str | Path | None = None,
) -> Split:
    """Loads the images that a config trains and validates on.

    Args:
        config: names the data set and limits the number of images of each split.
        data_dir: see `load_split`.
        archives: see `load_split`.

    Raises:
        UserError: see `load_split`; or the training images do not fill one batch.
    """
    where = {"data_dir": data_dir, "archives": archives}
    train, _ = load_split(config.dataset, "train", **where)
    test, test_labels = load_split(config.dataset, "test", **where)
    return _limited(config, Split(train, test, test_labels))


def of_arrays(config: TrainConfig, train: np.ndarray, test: np.ndarray) -> Split:
    """Takes arrays as the images that a config trains and validates on, without labels.

    Args:
        config: limits the number of images of each split.
        train, test: uint8 ``[N, height, width, channels]``, N at least 1.

    Raises:
        UserError: arrays of another type or shape, or too few training images for one batch.
    """
    for name, images in (("training", train), ("test", test)):
        if (
            images.dtype != np.uint8
            or images.shape[1:] != IMAGE_SHAPES["arrays"]
            or not len(images)
        ):
            shape = ", ".join(map(str, IMAGE_SHAPES["arrays"]))
            raise UserError(
                f"`images` has {name} images of type {images.dtype} and shape "
                f"{list(images.shape)}; it takes uint8 [N, {shape}]"
            )
    return _limited(config, Split(train, test, np.zeros(len(test), np.int32)))


def _limited(config: TrainConfig, split: Split) -> Split:
    """The first images of each split, as many as the config says."""
    train = split.train[: config.train_examples]
    if config.batch_size > len(train):
        raise UserError(
            f"`batch_size` is {config.batch_size}; it takes at most the {len(train)} images "
            f"of {config.dataset}"
        )
    return Split(
        train, split.test[: config.test_examples], split.test_labels[: config.test_examples]
    )


def load_split(
    dataset: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    archives: str | Path | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Loads one split of a data set; the first call prepares the data set on disk.

    A prepared data set that is damaged is prepared again.

    Args:
        dataset: ``"fashion_mnist"``, ``"mnist"`` or ``"kmnist"``.
        split: ``"train"`` (60,000 examples) or ``"test"`` (10,000).
        data_dir: directory of prepared data sets; None takes ``TFDS_DATA_DIR``, else the default
            of TensorFlow Datasets.
        archives: directory with the four original IDX files, as ``.gz`` or unpacked; None takes
            those shipped with the package, or downloads them.

    Returns:
        Images uint8 ``[N, height, width, channels]`` and labels int32 ``[N]``, in original order.

    Raises:
        UserError: unknown name, damaged or missing file, host unreachable, directory not writable.
    """
    for name, value, known in (("dataset", dataset, IMAGE_SHAPES), ("split", split, SPLITS)):
        if value not in known:
            raise UserError(f"`{name}` is {value!r}; it takes {', '.join(known)}")
    if dataset == "arrays":
        raise UserError(
            "the data set is arrays, which no file holds; pass them to `cae_jax.fit` as images"
        )
    # A wrong `archives` is an error where the data are prepared, too.
    if archives is None and (arrays := decoded.find(dataset, data_dir, split)) is not None:
        return arrays
    from cae_jax.data import store  # TensorFlow Datasets takes half a second to import

    return store.load(dataset, split, data_dir, archives)


def class_names(dataset: str) -> tuple[str, ...]:
    """Returns the names of a data set's labels 0 to 9."""
    from cae_jax.data.tfds_builder import IdxImages

    source: Any = IdxImages.builder_configs[dataset]
    return source.classes
