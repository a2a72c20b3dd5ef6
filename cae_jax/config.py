"""The typed description of one training run, and the noises that it can name."""

import dataclasses
import difflib
import itertools
import math
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cae_jax.errors import UserError

Shape = tuple[int, int, int]
# The data sets that have a name: height, width and channels of their images.
NAMED: dict[str, Shape] = dict.fromkeys(("fashion_mnist", "mnist", "kmnist"), (28, 28, 1))
ARRAYS = "arrays"  # images that are given to `fit`
LEAST_SIDE = 4  # pixels
MAX_PIXELS = 50_000_000  # of an image
RUN_MARK = ".cae-jax"  # a file in the directory of each run
FORMAT = 1  # of files on disk; incremented whenever earlier versions cannot read them
Background = Literal["auto", "black", "white"]
Loss = Literal["bce", "mse"]
Precision = Literal["float32", "tf32", "bf16"]
# Default features of the convolutional network up to each length of the longer side: for a code of
# 4 x 4 x 8 of square images of 28, 32, 64 and 128 pixels; docs/own-images.md has others, measured.
_FEATURES = {
    16: (16, 8),
    31: (16, 8, 8),
    47: (32, 32, 8),
    95: (32, 32, 32, 8),
    math.inf: (32, 32, 16, 16, 8),
}
# A denoiser has no use for a short code; smaller images keep the tutorial's network.
_DENOISER, _DENOISER_SIDE = (32, 64, 64), 32
_WIDE = 32  # features of the first layer from which on a lower learning rate is better

Noise = Literal[
    "none",
    "gaussian",
    "salt_and_pepper",
    "masking",
    "speckle",
    "poisson",
    "occlusion",
    "mix",
    "pairs",
]


class Levels(NamedTuple):
    """The levels of a noise.

    Attributes:
        meaning: what the level measures, with its unit.
        default: level where a config names none.
        least, most: the range, both ends included.
        whole: whether the level is a whole number of pixels, at most the images' shorter side.
    """

    meaning: str
    default: float
    least: float
    most: float = math.inf
    whole: bool = False


# `cae_jax.training.noise` draws them.
NOISES = {
    "gaussian": Levels("standard deviation, white being 1", 0.5, 0.0, 1e3),
    "salt_and_pepper": Levels("fraction of the pixels", 0.3, 0.0, 1.0),
    "masking": Levels("fraction of the pixels", 0.5, 0.0, 1.0),
    "speckle": Levels("standard deviation of the factor", 0.7, 0.0, 1e3),
    "poisson": Levels("photons at white", 3.0, 1e-3, 1e6),
    "occlusion": Levels("side of the square in pixels", 12.0, 1.0, whole=True),
}
# The least and the largest number that float32 holds with all its digits.
_TINY, _HUGE = 1.2e-38, 3.4e38
MIX = "mix"  # one of the others for each image, at its default level
PAIRS = "pairs"  # none is drawn: the data have an input for each target


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines the result of a training run, and nothing else.

    Vary a config with ``dataclasses.replace(config, epochs=50)``. The defaults are those of
    ``configs/fashion_mnist.py``.

    Raises:
        UserError: a value outside its range or choices; names the field.
    """

    data: str = "fashion_mnist"
    """fashion_mnist, mnist, kmnist or a path: image folder, .npz, .npy, parquet, IDX or prepared
    TFDS files (PATH::PART for a part)."""

    image_size: tuple[int, ...] | None = None
    """Resize to this height and width, or one for both."""

    resize: Literal["fit", "crop", "stretch", "none"] = "crop"
    """crop, fit (adds borders), stretch, or none."""

    channels: Literal["auto", 1, 3, 4] = "auto"
    """auto: 1 if all images are gray, else 3."""

    background: Background = "auto"
    """Behind transparency: black, white or auto."""

    black: float = 0.0
    """Value of black in images not of 8 bits."""

    white: float | Literal["auto"] | None = None
    """Value of white, such as 4095 for 12 bits, or auto: black and white as the training images
    have them."""

    frames: Literal["first", "all"] = "first"
    """Of several frames or pages: first or all."""

    max_pixels: int = MAX_PIXELS
    """Most pixels of a file of few bytes."""

    split: float = 0.9
    """Share for training if there is no test set."""

    include: tuple[str, ...] = ()
    """Take only files that match, such as left/*.png."""

    exclude: tuple[str, ...] = ()
    """Leave out what matches, such as *_mask.png masks."""

    decode: Literal["once", "each-epoch"] = "once"
    """Decode training images once or each-epoch."""

    skip_unreadable: bool = False
    """Skip damaged files; folders without permission."""

    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels of the images, which `resolved` sets; not a flag."""

    levels: tuple[float, float] | None = None
    """Black and white where `white` is auto, which training sets; not a flag."""

    train_examples: int | None = None
    """Train on the first N images only."""

    test_examples: int | None = None
    """Validate on the first N images only."""

    model: Literal["conv", "simple", "deep"] = "conv"
    """conv, or dense: simple (1 layer), deep (5)."""

    features: tuple[int, ...] | None = None
    """Channels of 1 to 6 encoder layers; set by size."""

    loss: Loss = "bce"
    """Binary cross-entropy or mean squared error."""

    widths: tuple[int, ...] | None = None
    """Layers of deep up to the code, as 128 64 32."""

    rate: float = 0.0
    """Weight of the code's bits per pixel value."""

    precision: Precision = "float32"
    """Of products: float32, tf32 or bf16."""

    noise: Noise = "none"
    """none, gaussian, salt_and_pepper, masking, speckle, poisson, occlusion, or mix (one at random
    for each image); the target stays clean."""

    noise_level: float | None = None
    """Standard deviation (gaussian, speckle), fraction of pixels (salt_and_pepper, masking),
    photons at white (poisson), side in pixels (occlusion)."""

    pairs: tuple[str, ...] = ()
    """Train on inputs and targets of your own, such as noisy clean: folders in `data`, columns or
    arrays."""

    batch_size: int = 128
    """Images per step; fewer in the last one."""

    microbatches: int = 1
    """Parts of a batch, which devices share."""

    epochs: int = 20
    """Passes over the training images."""

    optimizer: Literal["soap", "adam", "nadam", "adamw", "adadelta", "sgd"] = "soap"
    """soap, adam, nadam, adamw, adadelta or sgd."""

    learning_rate: float | None = None
    """Peak; default: 0.03, wide 0.01, dense 0.003."""

    schedule: Literal["constant", "cosine"] = "cosine"
    """constant, or cosine: down to 0 at the end."""

    warmup_steps: int = 1000
    """Linear warm-up, at most half of all steps."""

    restarts: tuple[int, ...] = ()
    """Epochs after which a cosine schedule starts again with its warm-up, set when a finished run
    gets more epochs; not a flag."""

    b1: float = 0.9
    """First-moment decay: soap, adam, nadam, adamw."""

    b2: float = 0.95
    """Second-moment decay: the same four."""

    rho: float = 0.95
    """Decay of both running means: adadelta."""

    eps: float = 1e-8
    """Added to the denominator: all but sgd."""

    momentum: float = 0.0
    """Momentum: sgd."""

    weight_decay: float = 0.0
    """Decoupled weight decay: adamw."""

    clip_norm: float | None = None
    """Clip the gradient to this global norm."""

    on_nan: Literal["stop", "skip"] = "stop"
    """What to do on a non-finite loss or gradient."""

    max_skips: int = 10
    """Maximum skips in a row before stopping."""

    seed: int = 0
    """Seed of the weights, image order and noise."""

    def __post_init__(self) -> None:
        _check_types(self)
        if self.pairs and self.noise == "none":
            object.__setattr__(self, "noise", PAIRS)
        _check_ranges(self)


def _check_types(config: TrainConfig) -> None:
    for name, hint in typing.get_type_hints(TrainConfig).items():
        value: Any = getattr(config, name)
        choices = typing.get_args(hint)
        if type(None) in choices:
            if value is None:
                continue
            hint = choices[0]
            if Literal["auto"] in choices and str(value) == "auto":
                continue
        if typing.get_origin(hint) is Literal:
            accepted, takes = value in choices, ", ".join(map(str, choices))
        elif hint is int:
            accepted = type(value) is int and abs(value) < 2**32  # steps and seeds are of 32 bits
            takes = "a whole number of at most 4294967295"
        elif hint is float:
            accepted = type(value) in (int, float) and (value == 0 or _TINY <= abs(value) <= _HUGE)
            value = float(value) if accepted else value  # 1 and 1.0 are the same config
            takes = f"a finite number: 0, or {_TINY} to {_HUGE} in size, which float32 can hold"
        elif hint is bool:
            accepted, takes = type(value) is bool, "True or False"
        elif hint is str:
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            accepted, takes = type(value) is str and value != "", "a name or a path"
        elif hint == tuple[str, ...]:
            value = (value,) if type(value) is str else value
            accepted = isinstance(value, (tuple, list)) and all(type(x) is str and x for x in value)
            value = tuple(value) if accepted else value
            takes = "two names" if name == "pairs" else "patterns of file names"
        else:
            lengths, least, takes = _TUPLES[name]
            kinds = {int, typing.get_args(hint)[0]}
            value = (value,) if name == "image_size" and type(value) is int else value
            accepted = (
                isinstance(value, (tuple, list))
                and all(type(n) in kinds and n >= least for n in value)
                and (not lengths or len(value) in lengths)
            )
            if accepted:
                value = tuple(value) * (2 if name == "image_size" and len(value) == 1 else 1)
        if not accepted:
            takes += ", or auto" if Literal["auto"] in choices else ""
            raise UserError(f"`{name}` is {_short(value)}; it takes {takes}")
        object.__setattr__(config, name, value)


# Lengths and least value of the fields that are tuples, and what they take, in words.
_TUPLES = {
    "image_size": ((1, 2), LEAST_SIDE, f"one or two whole numbers of at least {LEAST_SIDE}"),
    "image_shape": ((3,), 1, "height, width and channels"),
    "levels": ((2,), -math.inf, "the values of black and white"),
    "features": (range(1, 7), 1, "1 to 6 positive whole numbers"),
    "widths": (range(1, 7), 1, "1 to 6 positive whole numbers"),
    "restarts": ((), 0, "whole numbers"),
}


def _short(value: Any) -> str:
    """A value as the user gave it, in at most 100 characters."""
    if isinstance(value, tuple) and value:
        return " ".join(map(str, value))
    # Python refuses to print a whole number of thousands of digits.
    text = repr(value) if type(value) is not int or abs(value) < 10**20 else "a larger number"
    return text if len(text) < 100 else f"{text[:97]}..."


def _check_ranges(config: TrainConfig) -> None:
    for names, is_accepted, takes in _RANGES:
        for name in names.split():
            value = getattr(config, name)
            if value is not None and not is_accepted(value):
                raise UserError(f"`{name}` is {value!r}; it takes {takes}")
    check_level(config.noise, config.noise_level, known_shape(config))
    _check_levels(config)
    if config.pairs and (len(set(config.pairs)) != 2 or len(config.pairs) != 2):
        raise UserError(
            f"`pairs` is {_short(config.pairs)}; it takes two names, of inputs and of targets"
        )
    if bool(config.pairs) != (config.noise == PAIRS):
        raise UserError(
            f"`noise` is {config.noise}; `pairs` names inputs and targets, to which no noise is "
            "added: leave one of them out"
            if config.pairs
            else "`noise` is pairs; give the names of inputs and targets in `pairs`"
        )
    phases = (0, *config.restarts, config.epochs)
    if any(a >= b for a, b in itertools.pairwise(phases)):
        raise UserError(f"`restarts` is {config.restarts}; it takes rising epochs below `epochs`")
    if config.decode != "once" and (config.data in (*NAMED, ARRAYS) or config.frames == "all"):
        raise UserError(
            f"`decode` is {config.decode}; it takes a folder of image files, of which the first "
            "frames are read: leave it out"
        )
    if config.microbatches > config.batch_size:
        raise UserError(f"`microbatches` is {config.microbatches}; it takes at most `batch_size`")
    if config.batch_size > (config.train_examples or math.inf):
        raise UserError(f"`batch_size` is {config.batch_size}; it takes at most `train_examples`")


def _check_levels(config: TrainConfig) -> None:
    if config.white == config.black:
        raise UserError(f"`white` is {config.white:g}, as `black`; give two values")
    if config.white == "auto" and config.black:
        raise UserError("`white` is auto, which finds `black` too; leave that out")


def is_shape(shape: tuple[int, ...]) -> bool:
    """Whether networks take images of a height, width and channels."""
    return len(shape) == 3 and min(shape[:2]) >= LEAST_SIDE and shape[2] in (1, 3, 4)


# Fields, the values that they accept, and the same in words. None is always accepted.
_RANGES: list[tuple[str, Callable[[Any], bool], str]] = [
    (
        "batch_size microbatches epochs train_examples test_examples max_pixels",
        lambda n: n >= 1,
        "a whole number of at least 1",
    ),
    ("warmup_steps max_skips", lambda n: n >= 0, "a whole number of at least 0"),
    ("seed", lambda n: n >= 0, "a whole number from 0 to 4294967295"),
    ("b1 b2 rho momentum", lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    ("learning_rate eps clip_norm", lambda x: x > 0, "a positive number"),
    ("weight_decay rate", lambda x: x >= 0, "a number of at least 0"),
    ("split", lambda x: 0 < x < 1, "a number between 0 and 1"),
    ("image_size", lambda size: math.prod(size) <= MAX_PIXELS, f"at most {MAX_PIXELS} pixels"),
    (
        "image_shape",
        is_shape,
        f"at least {LEAST_SIDE} x {LEAST_SIDE} pixels, 1, 3 or 4 channels",
    ),
]


_MOMENTS = ("soap", "adam", "nadam", "adamw")
# Fields that not every config uses: the field on which that depends, and its values that do.
_USED_BY = {
    "features": ("model", ("conv",)),
    "widths": ("model", ("deep",)),
    "b1": ("optimizer", _MOMENTS),
    "b2": ("optimizer", _MOMENTS),
    "eps": ("optimizer", (*_MOMENTS, "adadelta")),
    "rho": ("optimizer", ("adadelta",)),
    "momentum": ("optimizer", ("sgd",)),
    "weight_decay": ("optimizer", ("adamw",)),
    "max_skips": ("on_nan", ("skip",)),
}


def check_used(config: TrainConfig, fields: Iterable[str]) -> None:
    """Raises a `UserError` if the training of a config ignores one of these fields."""
    for name in _USED_BY.keys() & set(fields):
        decides, values = _USED_BY[name]
        if (chosen := getattr(config, decides)) not in values:
            raise UserError(
                f"`{name}` has no effect with {decides} {chosen}; leave it out, or set "
                f"`{decides}` to {' or '.join(values)}"
            )


def known_shape(config: TrainConfig) -> Shape | None:
    """Height, width and channels of a config's images; None before they are read."""
    if config.image_shape is not None:
        return config.image_shape
    named, size, channels = NAMED.get(config.data), config.image_size, config.channels
    if named and size in (None, named[:2]) and channels in ("auto", named[2]):
        return named
    return None if size is None or channels == "auto" else (size[0], size[1], channels)


def resolved(config: TrainConfig, image_shape: Shape | None = None) -> TrainConfig:
    """The config with the shape of its images, the features of its network and its peak rate.

    Raises:
        UserError: `image_shape`, of the images that were read, is missing and not in the config.
    """
    shape = image_shape or known_shape(config)
    if shape is None:
        raise UserError(
            f"the images of `data` {config.data} have a shape that is not known before they are "
            "read; give `image_size` and `channels`"
        )
    features = config.features or default_features(config.noise, shape)[0]
    config = dataclasses.replace(config, image_shape=shape, features=features)
    return dataclasses.replace(config, learning_rate=peak_rate(config))


def default_features(noise: str, image_shape: Shape) -> tuple[tuple[int, ...], str]:
    """The features of a convolutional network where a config names none, and what they are for."""
    side = max(image_shape[:2])
    if noise != "none" and side >= _DENOISER_SIDE:
        return _DENOISER, "denoising, with a large code in which details survive"
    features = next(features for most, features in _FEATURES.items() if side <= most)
    return features, f"a short code of images of {side} pixels"


def peak_rate(config: TrainConfig) -> float:
    """The peak of the learning rate, by default as tuned for networks of such a width."""
    if config.learning_rate is not None:
        return config.learning_rate
    if config.model != "conv":
        return 3e-3
    return 1e-2 if config.features and config.features[0] >= _WIDE else 3e-2


def check_level(
    noise: str, level: float | None, image_shape: tuple[int, ...] | None = None
) -> float:
    """Returns the level of a noise; 0 for ``"none"``, `MIX` and `PAIRS`.

    Args:
        noise: ``"none"``, `MIX`, `PAIRS` or a key of `NOISES`.
        level: None for the default; in pixels at most half of the images' shorter side.
        image_shape: ``(height, width, channels)``, which bounds a level in pixels, if known.

    Raises:
        UserError: unknown noise, or a level outside its range.
    """
    if noise in ("none", MIX, PAIRS):
        if level is not None:
            raise UserError(f"`noise_level` is {level!r}; noise {noise} takes none")
        return 0.0
    if noise not in NOISES:
        raise UserError(f"`noise` is {noise!r}; it takes none, {', '.join(NOISES)} or {MIX}")
    levels = NOISES[noise]
    most = min(image_shape[:2]) if levels.whole and image_shape else levels.most
    if level is None:
        level = min(levels.default, max(most // 2, levels.least) if levels.whole else most)
    in_range = levels.least <= level <= most  # false for NaN
    if not in_range or (levels.whole and not float(level).is_integer()):
        number = "whole number" if levels.whole else "number"
        bounds = f"from {levels.least:g} to {most:g}"
        if most == math.inf:
            bounds = f"of at least {levels.least:g}"
        raise UserError(
            f"`noise_level` is {level!r}; noise {noise} takes a {number} {bounds}: {levels.meaning}"
        )
    return float(level)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Converts a config to plain JSON types, in the order of its fields."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
    }


def to_shared(config: TrainConfig) -> dict[str, Any]:
    """As `to_dict`, for files that are passed on: `data` without the folders it lies in."""
    return {**to_dict(config), "data": Path(config.data).name}


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys of `there` that differ in `now`, both from `to_dict`, with the two values."""
    differing = [key for key in there if there[key] != now.get(key)]
    return [f"{key} ({there[key]} there, {now.get(key)} now)" for key in differing]


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the keys that `to_dict` had in earlier versions."""
    values = dict(values)
    if "dataset" in values:  # the name of `data` before there were other sizes than 28 x 28
        values |= {"data": values.pop("dataset"), "image_shape": [28, 28, 1]}
    if limit := values.pop("limit", None):  # bounded both numbers of images
        for name in ("train_examples", "test_examples"):
            values[name] = min(limit, values.get(name) or limit)
    return values


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Inverts `to_dict`; takes the dictionaries of earlier versions too.

    Raises:
        UserError: an unknown key or an invalid value.
    """
    values = upgraded(values)
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; the keys are {', '.join(fields)}"
            raise UserError(f"unknown config key {key!r}{hint}")
    return TrainConfig(**values)
