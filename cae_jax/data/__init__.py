"""Image data sets as uint8 arrays: `load` gives what a config trains on, `load_split` one split."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cae_jax.config import ARRAYS, NAMED, Shape, TrainConfig, is_original
from cae_jax.data import decoded, own
from cae_jax.data.conversion import check_shape, check_size, eight_bit_array
from cae_jax.data.decoded import Arrays
from cae_jax.data.source import SPLITS
from cae_jax.errors import UserError


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
    read = _reader(config, data_dir, archives)
    train, test = (_checked(config, read(split)[0]) for split in SPLITS)
    return _limited(config, Split(train, test))


def of_arrays(config: TrainConfig, images: tuple[np.ndarray, np.ndarray]) -> Split:
    """Takes arrays as the images that a config trains and validates on.

    Args:
        config: limits the number of images of each split.
        images: training and test images: uint8, uint16 (divided by 257), bool (True is white) or
            floats in [0, 1], ``[N, height, width, channels]``, N at least 1, of 1, 3 or 4 channels;
            gray ones also ``[N, height, width]``.

    Raises:
        UserError: arrays of another type or shape, or too few training images for one batch.
    """
    if not isinstance(images, (tuple, list)) or len(images) != 2:
        raise UserError("`images` takes two arrays, of training and of test images: (train, test)")
    train, test = _array(images[0], "training"), _array(images[1], "test")
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"`images` has training images of shape {list(train.shape)} and test images of shape "
            f"{list(test.shape)}; it takes one size and number of channels"
        )
    if config.image_size not in (None, train.shape[1:3]):
        raise UserError(
            f"`images` has images of shape {list(train.shape)}, which are not resized to the "
            "config's `image_size`; leave it out, or save them as a .npz file for `data`"
        )
    return _limited(config, Split(train, test))


def _array(images: np.ndarray, kind: str) -> np.ndarray:
    """Images as uint8 ``[N, height, width, channels]``."""
    name = f"the array of {kind} images"
    try:
        images = np.asarray(images)
    except ValueError:
        raise UserError(f"{name} has images of several shapes; give images of one") from None
    check_size(check_shape(images.shape, name)[:2], name)
    return eight_bit_array(images[..., None] if images.ndim == 3 else images, name)


def _limited(config: TrainConfig, split: Split) -> Split:
    """The first images of each split, as many as the config says."""
    train = split.train[: config.train_examples]
    if config.batch_size > len(train):
        limited = config.limit is not None or config.train_examples is not None
        of = " that are left of" if limited else " of"
        raise UserError(
            f"`batch_size` is {config.batch_size}, and there are {len(train)} training images{of} "
            f"{config.data}; pass `batch_size={len(train)}` or less"
        )
    return Split(train, split.test[: config.test_examples])


def load_split(
    config: TrainConfig,
    split: str,
    *,
    data_dir: str | Path | None = None,
    archives: str | Path | None = None,
) -> Arrays:
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
        Images uint8 ``[N, height, width, channels]`` and labels int32 ``[N]``, None without
        labels. They are in the order of the source; those of a folder in one that mixes classes.

    Raises:
        UserError: unknown name or path, damaged or missing file, images of several sizes, host
            unreachable, directory not writable.
    """
    if split not in SPLITS:
        raise UserError(f"`split` is {split!r}; it takes {', '.join(SPLITS)}")
    images, labels = _reader(config, data_dir, archives)(split)
    return _checked(config, images), labels


def _reader(
    config: TrainConfig, data_dir: str | Path | None, archives: str | Path | None
) -> Callable[[str], Arrays]:
    """What reads a split of a config's images."""
    if config.data == ARRAYS:
        raise UserError(
            "the images were arrays, which no file holds; save them with numpy.savez(FILE, "
            "train=..., test=...), and train with the file as `data`"
        )
    if is_original(config):
        return lambda split: _original(config, split, data_dir, archives)
    if config.data not in NAMED and archives is not None:
        raise UserError(f"`archives` is for {', '.join(NAMED)}; `data` {config.data} takes none")
    found = own.find(config.data)
    name = own.prepared_name(config, found, data_dir)

    def read(split: str) -> Arrays:
        if (arrays := decoded.read(decoded.folder(name, data_dir), split)) is not None:
            return arrays
        from cae_jax.data import preparation, store  # TFDS takes half a second to import

        source = partial(preparation.open_source, found, data_dir, archives)
        return store.load(preparation.Own(config, name, found.data, source), split, data_dir)

    return read


def _original(
    config: TrainConfig, split: str, data_dir: str | Path | None, archives: str | Path | None
) -> Arrays:
    """Reads a data set that has a name, as it is."""
    arrays = decoded.read(decoded.folder(config.data, data_dir), split)
    # A wrong `archives` is an error where the data are prepared, too.
    if arrays is None or archives is not None:
        from cae_jax.data import named, store  # as above

        arrays = store.load(named.Named(config.data, archives), split, data_dir)
    images, labels = arrays
    return images[: config.limit], labels if labels is None else labels[: config.limit]


def _checked(config: TrainConfig, images: np.ndarray) -> np.ndarray:
    """The images, whose shape has to be the one that a config has where it was trained."""
    if config.image_shape not in (None, images.shape[1:]):
        raise UserError(
            f"`data` {config.data} has images of shape {list(images.shape[1:])}, and the config's "
            f"`image_shape` is {list(config.image_shape or ())}; give the images of the run"
        )
    return images


def located(config: TrainConfig, *, data_dir: str | Path | None = None) -> TrainConfig:
    """The config with an absolute path to its images, so that it means them from anywhere.

    Raises:
        UserError: nothing is there, and nothing was prepared from it before.
    """
    if config.data in NAMED or config.data == ARRAYS:
        return config
    found = own.find(config.data)
    if found.listing is None:
        own.prepared_name(config, found, data_dir)
    return dataclasses.replace(config, data=found.data)


def class_names(config: TrainConfig, *, data_dir: str | Path | None = None) -> tuple[str, ...]:
    """Returns the names of the labels of a data set that is prepared; () without labels."""
    if config.data == ARRAYS:
        return ()
    if config.data in NAMED:
        from cae_jax.data.tfds_builder import CaeImages

        source: Any = CaeImages.builder_configs[config.data]
        return source.classes
    name = own.prepared_name(config, own.find(config.data), data_dir)
    classes = own.read_record(decoded.folder(name, data_dir)).get("classes")
    return tuple(map(str, classes)) if isinstance(classes, list) else ()
