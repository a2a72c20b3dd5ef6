"""Image data sets as uint8 arrays: `load` returns what a config trains on, `load_split` one split.

The path in a config leads to a source (`path`), whose images are converted to one shape
(`conversion`) and prepared as .npy files (`prepared`), which are mapped to memory. `stream` reads
them once and prepares nothing.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cae_jax.config import ARRAYS, NAMED, Shape, TrainConfig, resolved
from cae_jax.data import path, prepared
from cae_jax.data.encoded import Encoded
from cae_jax.data.pixels import (
    WHITE,
    RangeError,
    Statistics,
    check_shape,
    check_size,
    eight_bit_array,
    range_of,
    spanned,
)
from cae_jax.data.prepared import Arrays, Prepared
from cae_jax.data.sources import SPLITS
from cae_jax.data.unprepared import stream
from cae_jax.data.workers import cores
from cae_jax.errors import UserError

Images = np.ndarray | Encoded
logger = logging.getLogger(__name__)

__all__ = [
    "SPLITS",
    "Arrays",
    "Dataset",
    "class_names",
    "elsewhere",
    "load",
    "load_split",
    "load_unseen",
    "located",
    "of_arrays",
    "stream",
]


class Dataset(NamedTuple):
    """The images that a config trains and validates on.

    Those of pairs have the channels of the target and after them those of the input.

    Attributes:
        train: training images, uint8 ``[N, height, width, channels]``; may be `Encoded`.
        validation: validation images, uint8 ``[N, height, width, channels]``; the test images of a
            data set that has no others.
        digest: SHA-256 of the bytes of the training images, of the test images, and of validation
            images apart from those; "" for a named data set, which the config identifies.
        levels: black and white that were found for a config whose `white` is ``"auto"``.
    """

    train: Images
    validation: np.ndarray
    digest: str = ""
    levels: tuple[float, float] | None = None

    @property
    def image_shape(self) -> Shape:
        """Height, width and channels of the images."""
        height, width, channels = self.train.shape[1:]
        return height, width, channels

    def resolve(self, config: TrainConfig) -> TrainConfig:
        """The config with what the images decide: their shape, black and white, and features."""
        shape = _shape_of_one(config, self.image_shape)
        return resolved(dataclasses.replace(config, levels=self.levels), shape)


def load(
    config: TrainConfig,
    *,
    data_dir: str | Path | None = None,
    verify_data: bool = False,
    workers: int | None = None,
) -> Dataset:
    """Loads the images that a config trains and validates on; arguments as of `load_split`.

    Raises:
        UserError: see `load_split`; or the training images do not fill one batch.
    """
    images = _load(config, data_dir, verify_data, workers)
    (all_train, _), (test, _), (all_validation, _) = images[:3]
    train, validation = _first(config, all_train, all_validation)
    if config.data in NAMED:
        return Dataset(train, validation, "", images.levels)
    if len(train) == len(all_train) and len(validation) == len(all_validation):
        return Dataset(train, validation, images.digest, images.levels)
    others = [] if all_validation is test else [test]
    digest = prepared.kept_digest(images.folder, train, *others, validation)
    return Dataset(train, validation, digest, images.levels)


def of_arrays(
    config: TrainConfig,
    images: tuple[np.ndarray, np.ndarray],
    targets: tuple[np.ndarray, np.ndarray] | None = None,
) -> Dataset:
    """Takes arrays as the images that a config trains and validates on.

    Args:
        config: limits the number of images of each split; has their black and white.
        images: training and test images: uint8, uint16 (divided by 257), bool (True is white) or
            floats in [0, 1], of any type if the config has a `white`, ``[N, height, width,
            channels]``, N at least 1, of 1, 3 or 4 channels; gray ones also ``[N, height, width]``.
        targets: what the images are to become, arrays of the same types and shapes, for a config
            with `pairs`. Default: the images themselves.

    Raises:
        UserError: arrays of another type or shape, or too few training images for one batch.
    """
    for name, given in (("images", images), ("targets", targets)):
        if given is not None and not (isinstance(given, (tuple, list)) and len(given) == 2):
            raise UserError(f"`{name}` takes two arrays, of training and of test images")
    given = _array(images[0], "training images"), _array(images[1], "test images")
    sides = {"": given}
    if targets is not None:
        wanted = _array(targets[0], "training targets"), _array(targets[1], "test targets")
        for pair in zip(given, wanted, strict=True):
            _check_pair(*pair)
        sides = {"targets": wanted, "inputs": given}
    levels = spanned(train for train, _ in sides.values()) if config.white == "auto" else None
    config = dataclasses.replace(config, levels=levels)
    converted = [_eight_bits(config, *arrays, side) for side, arrays in sides.items()]
    train, test = converted[0]
    if targets is not None:  # by sides, of which the fourth channel is alpha
        train, test = (np.concatenate(both, axis=-1) for both in zip(*converted, strict=True))
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
    train, test = _first(config, train, test)
    return Dataset(train, test, prepared.digest(train, test), levels)


def _check_pair(inputs: np.ndarray, targets: np.ndarray) -> None:
    if (inputs.shape, inputs.dtype) != (targets.shape, targets.dtype):
        raise UserError(
            f"`images` has {inputs.dtype} of shape {list(inputs.shape)} and `targets` "
            f"{targets.dtype} of shape {list(targets.shape)}; give one type and shape"
        )


def _eight_bits(
    config: TrainConfig, train: np.ndarray, test: np.ndarray, side: str
) -> tuple[np.ndarray, np.ndarray]:
    """The images, or a side of pairs, as uint8; warns of dark ones."""
    what = side or "images"
    try:
        train = eight_bit_array(train, f"the array of training {what}", range_of(config))
        test = eight_bit_array(test, f"the array of test {what}", range_of(config))
    except RangeError as error:
        raise RangeError(error.problem, WHITE) from error
    statistics = Statistics(side)
    statistics.add(train)
    statistics.check("the array of pairs" if side else "`images`")
    if doubt := statistics.doubt:
        logger.warning(doubt)
    return train, test


def _array(images: np.ndarray, kind: str) -> np.ndarray:
    """Images of any type ``[N, height, width, channels]``."""
    name = f"the array of {kind}"
    try:
        images = np.asarray(images)
    except ValueError:
        raise UserError(f"{name} has images of several shapes; give images of one") from None
    check_size(check_shape(images.shape, name)[:2], name)
    return images[..., None] if images.ndim == 3 else images


def _first(config: TrainConfig, train: Images, validation: np.ndarray) -> tuple[Images, np.ndarray]:
    """The first images of each split, as many as the config says."""
    train = train[: config.train_examples]
    if config.batch_size > len(train):
        of = " of" if config.train_examples is None else " that are left of"
        raise UserError(
            f"`batch_size` is {config.batch_size}, and there are {len(train)} training images{of} "
            f"{config.data}; pass `batch_size={len(train)}` or less"
        )
    return train, validation[: config.test_examples]


def load_split(
    config: TrainConfig,
    split: str,
    *,
    data_dir: str | Path | None = None,
    verify_data: bool = False,
    workers: int | None = None,
) -> Arrays:
    """Loads one split of a data set; the first call prepares the data set on disk.

    Args:
        config: names the data set.
        split: ``"train"``, ``"test"``, or ``"validation"``: the test images if there are no others.
        data_dir: directory of prepared data sets; None takes ``TFDS_DATA_DIR``, else the default
            of TensorFlow Datasets.
        verify_data: compare all bytes of prepared images with their SHA-256; otherwise the sizes
            and headers of the files.
        workers: number of processes that decode images; 1 decodes in this one. Default: the number
            of CPUs.

    Returns:
        Images uint8 ``[N, height, width, channels]`` and labels int32 ``[N]``, None without
        labels; mapped to memory and read-only. They are in the order of the source; those of a
        folder in one that mixes classes.

    Raises:
        UserError: unknown name or path, damaged or missing file, images of several sizes, host
            unreachable, directory not writable.
    """
    if split not in SPLITS:
        raise UserError(f"`split` is {split!r}; it takes {', '.join(SPLITS)}")
    return getattr(_load(config, data_dir, verify_data, workers), split)


def elsewhere(config: TrainConfig, data: str, *, data_dir: str | Path | None = None) -> TrainConfig:
    """The config of a training with other images, which are converted as its own.

    Args:
        config: of the training.
        data: name or path of the images, as in a config.
        data_dir: see `load_split`.

    Raises:
        UserError: nothing is there.
    """
    assert config.image_shape is not None
    *size, channels = config.image_shape
    changes: dict[str, Any] = {"data": data, "image_size": tuple(size), "channels": channels}
    if config.levels is not None:  # those that were found, not those of other images
        changes |= {"black": config.levels[0], "white": config.levels[1], "levels": None}
    if config.resize == "none":
        changes["resize"] = "stretch"  # as `Autoencoder` does
    if not path.locate(data).path.is_dir():
        changes |= {"include": (), "exclude": (), "decode": "once"}
    return located(dataclasses.replace(config, **changes), data_dir=data_dir)


def load_unseen(
    config: TrainConfig,
    *,
    data_dir: str | Path | None = None,
    verify_data: bool = False,
    workers: int | None = None,
) -> list[np.ndarray]:
    """Loads images that a model was not trained on; arguments as of `load_split`.

    Returns:
        uint8 ``[N, height, width, channels]``: the test images, or all where the source is not
        split itself, in two arrays.

    Raises:
        UserError: see `load_split`.
    """
    prepared = _prepared(config, data_dir, verify_data, workers)
    parts = [prepared.train, prepared.test] if prepared.divided else [prepared.test]
    found = [images for images, _ in parts if len(images)]
    if not found:
        raise _empty(config, prepared, "test")
    return found


def _load(
    config: TrainConfig,
    data_dir: str | Path | None,
    verify_data: bool = False,
    workers: int | None = None,
) -> Prepared:
    """The prepared images, some in each split, which have the shape of a trained config."""
    images = _prepared(config, data_dir, verify_data, workers)
    for split in SPLITS:
        if not len(getattr(images, split)[0]):
            raise _empty(config, images, split)
    shape = _shape_of_one(config, images.train[0].shape[1:])
    if config.image_shape not in (None, shape):
        raise UserError(
            f"`data` {config.data} has images of shape {list(shape)}, and the config's "
            f"`image_shape` is {list(config.image_shape or ())}",
            "give the images of the run",
        )
    if config.levels not in (None, images.levels):
        raise UserError(
            f"`data` {config.data} has black and white {images.levels}, and those that the run was "
            f"trained on {config.levels}",
            "give the images of the run",
        )
    return images


def _shape_of_one(config: TrainConfig, shape: tuple[int, ...]) -> Shape:
    """The shape of an image, given that of images or of pairs."""
    height, width, channels = shape
    return height, width, channels // 2 if config.pairs else channels


def _empty(config: TrainConfig, images: Prepared, split: str) -> UserError:
    name = "training" if split == "train" else split
    left_out = f", {images.skipped} unreadable ones left out" if images.skipped else ""
    advice = "give more images"
    if images.divided and config.split != 0.5:
        advice += ", or divide them by `split=0.5`"
    return UserError(f"{config.data} gives no {name} images{left_out}", advice)


def _prepared(
    config: TrainConfig, data_dir: str | Path | None, verify_data: bool, workers: int | None
) -> Prepared:
    count = cores() if workers is None else workers
    if count < 1:
        raise UserError(f"`workers` is {count}; it takes a whole number of at least 1")
    if config.data == ARRAYS:
        raise UserError(
            "the images were arrays, which no file holds",
            "save them with numpy.savez(FILE, train=..., test=...), and train on FILE",
        )
    location, root = path.locate(config.data), path.data_root(data_dir)
    found = path.find(config, location, root)
    return prepared.load(config, location, found, root, verify_data, count)


def located(config: TrainConfig, *, data_dir: str | Path | None = None) -> TrainConfig:
    """The config with an absolute path to its images, which is valid in any working directory.

    Raises:
        UserError: nothing is there, and nothing was prepared from it before.
    """
    if config.data == ARRAYS:
        return config
    location = path.locate(config.data)
    if location.missing:
        prepared.newest_copy(config, location, path.data_root(data_dir))
    return dataclasses.replace(config, data=location.data)


def class_names(config: TrainConfig, *, data_dir: str | Path | None = None) -> tuple[str, ...]:
    """The names of the labels of a data set; () without labels. See `load_split`."""
    return () if config.data == ARRAYS else _load(config, data_dir).classes
