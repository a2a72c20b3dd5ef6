"""Image data sets as uint8 arrays: `load` gives what a config trains on, `load_split` one split."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cae_jax.config import ARRAYS, LEAST_SIDE, NAMED, Shape, TrainConfig
from cae_jax.data import decoded
from cae_jax.errors import UserError

SPLITS = ("train", "test")


class Split(NamedTuple):
    """A data set, split into training and test images.

    Attributes:
        train: training images, uint8 ``[N, height, width, channels]``.
        test: test images, uint8 ``[N, height, width, channels]``.
    """

    train: np.ndarray
    test: np.ndarray

    @property
    def image_shape(self) -> Shape:
        """Height, width and channels of the images."""
        height, width, channels = self.train.shape[1:]
        return height, width, channels


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
    where: Any = {"data_dir": data_dir, "archives": archives}
    train, test = (load_split(config, split, **where)[0] for split in SPLITS)
    return _limited(config, Split(train, test))


def of_arrays(config: TrainConfig, train: np.ndarray, test: np.ndarray) -> Split:
    """Takes arrays as the images that a config trains and validates on.

    Args:
        config: limits the number of images of each split.
        train, test: uint8 ``[N, height, width, channels]``, N at least 1, of 1, 3 or 4 channels;
            gray ones also ``[N, height, width]``.

    Raises:
        UserError: arrays of another type or shape, or too few training images for one batch.
    """
    train, test = (images[..., None] if images.ndim == 3 else images for images in (train, test))
    for name, images in (("training", train), ("test", test)):
        if images.dtype != np.uint8 or not len(images) or not _is_shape(images.shape[1:]):
            raise UserError(
                f"`images` has {name} images of type {images.dtype} and shape "
                f"{list(images.shape)}; it takes uint8 [N, height, width, channels] of at least "
                f"{LEAST_SIDE} x {LEAST_SIDE} pixels and 1, 3 or 4 channels"
            )
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"`images` has training images of shape {list(train.shape)} and test images of shape "
            f"{list(test.shape)}; it takes one size and number of channels"
        )
    return _limited(config, Split(train, test))


def _is_shape(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and min(shape[:2]) >= LEAST_SIDE and shape[2] in (1, 3, 4)


def _limited(config: TrainConfig, split: Split) -> Split:
    """The first images of each split, as many as the config says."""
    train = split.train[: config.train_examples]
    if config.batch_size > len(train):
        raise UserError(
            f"`batch_size` is {config.batch_size}; it takes at most the {len(train)} images "
            f"of {config.data}"
        )
    return Split(train, split.test[: config.test_examples])


def load_split(
    config: TrainConfig,
    split: str,
    *,
    data_dir: str | Path | None = None,
    archives: str | Path | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Loads one split of a data set; the first call prepares the data set on disk.

    A prepared data set that is damaged is prepared again.

    Args:
        config: names the data set.
        split: ``"train"`` or ``"test"``.
        data_dir: directory of prepared data sets; None takes ``TFDS_DATA_DIR``, else the default
            of TensorFlow Datasets.
        archives: directory with the four original IDX files, as ``.gz`` or unpacked; None takes
            those shipped with the package, or downloads them.

    Returns:
        Images uint8 ``[N, height, width, channels]`` and labels int32 ``[N]``, in original order.

    Raises:
        UserError: unknown name, damaged or missing file, host unreachable, directory not writable.
    """
    dataset = config.data
    if split not in SPLITS:
        raise UserError(f"`split` is {split!r}; it takes {', '.join(SPLITS)}")
    if dataset == ARRAYS:
        raise UserError(
            "the data set is arrays, which no file holds; pass them to `cae_jax.fit` as images"
        )
    if dataset not in NAMED:
        raise UserError(f"`data` is {dataset!r}; it takes {', '.join(NAMED)}")
    # A wrong `archives` is an error where the data are prepared, too.
    if archives is None and (arrays := decoded.find(dataset, data_dir, split)) is not None:
        return arrays
    from cae_jax.data import store  # TensorFlow Datasets takes half a second to import

    return store.load(dataset, split, data_dir, archives)


def class_names(config: TrainConfig) -> tuple[str, ...]:
    """Returns the names of a data set's labels, in order."""
    from cae_jax.data.tfds_builder import IdxImages

    source: Any = IdxImages.builder_configs[config.data]
    return source.classes
