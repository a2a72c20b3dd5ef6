"""The typed description of one training run, and the noises that it can name."""

import dataclasses
import difflib
import itertools
import math
import os
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cae_jax.errors import UserError

Shape = tuple[int, int, int]
# The data sets that have a name: height, width and channels of their images.
NAMED: dict[str, Shape] = dict.fromkeys(("fashion_mnist", "mnist", "kmnist"), (28, 28, 1))
ARRAYS = "arrays"  # images that are given to `fit`
LEAST_SIDE = 4  # pixels
MAX_PIXELS = 50_000_000  # of an image
RUN_MARK = ".cae-jax"  # a file in the directory of each run
# Of what is written to disk; incremented whenever earlier versions cannot read it.
FORMAT = 1
Background = Literal["auto", "black", "white"]
Loss = Literal["bce", "mse"]
# The fields of a config that say which images it takes, and how they are brought to one shape.
DATA_FIELDS = (
    "data",
    "image_size",
    "resize",
    "channels",
    "background",
    "split",
    "skip_unreadable",
    "image_shape",
)
# Features of the convolutional network up to each length of the longer side.
_FEATURES = {16: (16, 8), 47: (16, 8, 8), 95: (32, 16, 16, 8)}
_WIDE_FEATURES = (32, 32, 16, 16, 8)

Noise = Literal[
    "none", "gaussian", "salt_and_pepper", "masking", "speckle", "poisson", "occlusion", "mix"
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines the result of a training run, and nothing else.

    Values are checked on construction; vary a config with ``dataclasses.replace(config,
    epochs=50)``. The defaults are those of ``configs/fashion_mnist.py``.

    Raises:
        UserError: a value outside its range or choices; names the field.
    """

    data: str = "fashion_mnist"
    """fashion_mnist, mnist, kmnist or a path: image folder, .npz, .npy, parquet, IDX or prepared
    TFDS files (PATH::PART for a part)."""

    image_size: tuple[int, ...] | None = None
    """Resize to this height and width, or one for both."""

    resize: Literal["fit", "crop", "stretch", "none"] = "crop"
    """How images get that size: crop, fit (adds borders), stretch, or none (other sizes are
    refused)."""

    channels: Literal["auto", 1, 3, 4] = "auto"
    """auto: 1 if all images are gray, else 3."""

    background: Background = "auto"
    """black or white behind transparent pixels, or auto, which contrasts with the image."""

    split: float = 0.9
    """Share for training if there is no test set."""

    skip_unreadable: bool = False
    """Skip files that are not intact images."""

    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels of the images, which `resolved` sets; not a flag."""

    train_examples: int | None = None
    """Train on the first N images only."""

    test_examples: int | None = None
    """Validate on the first N test images only."""

    model: Literal["conv", "simple", "deep"] = "conv"
    """conv, or dense: simple (1 layer), deep (5)."""

    features: tuple[int, ...] | None = None
    """Channels of 1 to 6 encoder layers, mirrored by the decoder; by default 16 8 8 for 28
    pixels."""

    loss: Loss = "bce"
    """Binary cross-entropy or mean squared error."""

    noise: Noise = "none"
    """none, gaussian, salt_and_pepper, masking, speckle, poisson, occlusion, or mix (one at random
    for each image); the target stays clean."""

    noise_level: float | None = None
    """Standard deviation (gaussian, speckle), fraction of pixels (salt_and_pepper, masking),
    photons at white (poisson), side in pixels (occlusion)."""

    batch_size: int = 128
    """Images per step; fewer in the last one."""

    epochs: int = 20
    """Passes over the training images."""

    optimizer: Literal["soap", "adam", "nadam", "adamw", "adadelta", "sgd"] = "soap"
    """soap, adam, nadam, adamw, adadelta or sgd."""

    learning_rate: float = 3e-2
    """Peak learning rate."""

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
        _check_ranges(self)


def _check_types(config: TrainConfig) -> None:
    for name, hint in typing.get_type_hints(TrainConfig).items():
        value: Any = getattr(config, name)
        if typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            if value not in choices:
                raise UserError(f"`{name}` is {value!r}; it takes {', '.join(map(str, choices))}")
        elif hint in (int, int | None):
            if type(value) is not int and not (value is None and hint is not int):
                raise UserError(f"`{name}` is {_short(value)}; it takes a whole number")
            if value is not None and abs(value) >= 2**32:  # steps and seeds are of 32 bits
                raise UserError(f"`{name}` is {_short(value)}; it takes at most 4294967295")
        elif hint in (float, float | None):
            if value is None and hint is not float:
                continue
            if not _is_float32(value):
                raise UserError(
                    f"`{name}` is {_short(value)}; it takes a finite number: 0, or {_TINY} to "
                    f"{_HUGE} in size, which float32 can hold"
                )
            object.__setattr__(
                config, name, float(typing.cast(float, value))
            )  # 1 and 1.0 are the same config
        elif hint is str and isinstance(value, os.PathLike):
            object.__setattr__(config, name, os.fspath(value))
        elif hint in (str, bool):
            if type(value) is not hint or value == "":
                takes = "True or False" if hint is bool else "a name or a path"
                raise UserError(f"`{name}` is {value!r}; it takes {takes}")
        elif value is not None or name == "restarts":
            lengths, least, takes = _TUPLES[name]
            if name == "image_size" and type(value) is int:
                value = (value,)
            if (
                not isinstance(value, (tuple, list))
                or not all(type(n) is int and n >= least for n in value)
                or (lengths and len(value) not in lengths)
            ):
                given = (isinstance(value, tuple) and " ".join(map(str, value))) or repr(value)
                raise UserError(f"`{name}` is {given}; it takes {takes}")
            value = tuple(value) * 2 if name == "image_size" and len(value) == 1 else tuple(value)
            object.__setattr__(config, name, value)


# Lengths and least value of the fields that are tuples, and what they take, in words.
_TUPLES = {
    "image_size": ((1, 2), LEAST_SIDE, f"one or two whole numbers of at least {LEAST_SIDE}"),
    "image_shape": ((3,), 1, "height, width and channels"),
    "features": (range(1, 7), 1, "1 to 6 positive whole numbers"),
    "restarts": ((), 0, "whole numbers"),
}


def _is_float32(value: Any) -> bool:
    return type(value) in (int, float) and (value == 0 or _TINY <= abs(value) <= _HUGE)


def _short(value: Any) -> str:
    """A value as an error shows it: a whole number of hundreds of digits would fill the screen."""
    text = repr(value) if type(value) is not int or abs(value) < 10**20 else "a larger number"
    return text if len(text) < 100 else f"{text[:97]}..."


def _check_ranges(config: TrainConfig) -> None:
    def check(name: str, accepted: bool, takes: str) -> None:
        if not accepted:
            raise UserError(f"`{name}` is {getattr(config, name)!r}; it takes {takes}")

    for name in ("batch_size", "epochs"):
        check(name, getattr(config, name) >= 1, "a whole number of at least 1")
    for name in ("train_examples", "test_examples"):
        value = getattr(config, name)
        check(name, value is None or value >= 1, "None or a whole number of at least 1")
    for name in ("b1", "b2", "rho", "momentum"):
        check(name, 0 <= getattr(config, name) < 1, "a number from 0 to below 1")
    check_level(config.noise, config.noise_level, known_shape(config))
    check(
        "image_shape",
        config.image_shape is None or is_shape(config.image_shape),
        f"at least {LEAST_SIDE} x {LEAST_SIDE} pixels and 1, 3 or 4 channels",
    )
    size = config.image_size
    check(
        "image_size",
        size is None or math.prod(size) <= MAX_PIXELS,
        f"at most {MAX_PIXELS} pixels in all",
    )
    check("split", 0 < config.split < 1, "a number between 0 and 1")
    check("learning_rate", config.learning_rate > 0, "a positive number")
    check("eps", config.eps > 0, "a positive number")
    for name in ("warmup_steps", "max_skips"):
        check(name, getattr(config, name) >= 0, "a whole number of at least 0")
    phases = [0, *config.restarts, config.epochs]
    check(
        "restarts",
        all(a < b for a, b in itertools.pairwise(phases)),
        "rising epochs below `epochs`",
    )
    check("weight_decay", config.weight_decay >= 0, "a number of at least 0")
    check(
        "clip_norm", config.clip_norm is None or config.clip_norm > 0, "None or a positive number"
    )
    check("seed", 0 <= config.seed < 2**32, "a whole number from 0 to 4294967295")
    if config.train_examples is not None:
        check("batch_size", config.batch_size <= config.train_examples, "at most `train_examples`")


def is_shape(shape: tuple[int, ...]) -> bool:
    """Whether images of a height, width and channels can be trained on."""
    return len(shape) == 3 and min(shape[:2]) >= LEAST_SIDE and shape[2] in (1, 3, 4)


def is_original(config: TrainConfig) -> bool:
    """Whether a config takes a data set that has a name, in the size and channels that it has."""
    shape = NAMED.get(config.data)
    return (
        shape is not None
        and config.image_size in (None, shape[:2])
        and config.channels in ("auto", shape[2])
    )


def known_shape(config: TrainConfig) -> Shape | None:
    """Height, width and channels of a config's images; None before they are read."""
    if config.image_shape is not None:
        return config.image_shape
    if is_original(config):
        return NAMED[config.data]
    if config.image_size is None or config.channels == "auto":
        return None
    height, width = config.image_size
    return height, width, config.channels


def default_features(image_shape: Shape) -> tuple[int, ...]:
    """The features of the convolutional network where a config names none, by the longer side.

    Tried with codes of 4 x 4 x 8 on patches of photographs, by the PSNR on held-out ones: of 64
    pixels 32, 16, 16, 8 is 0.7 dB above 16, 8, 8, 8 and 0.3 below 32, 32, 16, 8, which is slower;
    of 128 pixels 32, 32, 16, 16, 8 was the best. docs/own-images.md has the others.
    """
    side = max(image_shape[:2])
    return next((widths for most, widths in _FEATURES.items() if side <= most), _WIDE_FEATURES)


def resolved(config: TrainConfig, image_shape: Shape | None = None) -> TrainConfig:
    """The config with the shape of its images, and what follows from it.

    Args:
        config: any.
        image_shape: of the images that were read; None where the config tells it.

    Raises:
        UserError: it does not.
    """
    shape = image_shape or known_shape(config)
    if shape is None:
        raise UserError(
            f"the images of `data` {config.data} have a shape that is not known before they are "
            "read; give `image_size` and `channels`"
        )
    features = config.features or default_features(shape)
    return dataclasses.replace(config, image_shape=shape, features=features)


def check_same_images(configs: Sequence[TrainConfig]) -> None:
    """Refuses configs that take different images.

    Raises:
        UserError: names the first difference.
    """
    for name in DATA_FIELDS:
        values = sorted({str(getattr(config, name)) for config in configs})
        if len(values) > 1:
            raise UserError(
                f"the runs were trained with {name} {' and '.join(values)}; give runs of one data "
                "set"
            )


def check_level(
    noise: str, level: float | None, image_shape: tuple[int, ...] | None = None
) -> float:
    """Checks the level of a noise and returns it.

    Args:
        noise: ``"none"``, `MIX` or a key of `NOISES`.
        level: None for the default; in pixels at most half of the images' shorter side.
        image_shape: ``(height, width, channels)``, which bounds a level in pixels; None where it is
            not known.

    Returns:
        The level; 0 for ``"none"`` and `MIX`.

    Raises:
        UserError: unknown noise, or a level outside its range.
    """
    if noise in ("none", MIX):
        if level is not None:
            raise UserError(f"`noise_level` is {level!r}; noise {noise} takes none")
        return 0.0
    if noise not in NOISES:
        raise UserError(f"`noise` is {noise!r}; it takes none, {', '.join(NOISES)} or {MIX}")
    levels = NOISES[noise]
    most = min(image_shape[:2]) if levels.whole and image_shape else levels.most
    if level is None:
        half = max(most // 2, levels.least) if levels.whole else most
        level = min(levels.default, half)
    in_range = levels.least <= level <= most  # false for NaN
    if not in_range or (levels.whole and not float(level).is_integer()):
        number = "whole number" if levels.whole else "number"
        bounds = (
            f"from {levels.least:g} to {most:g}"
            if most < math.inf
            else f"of at least {levels.least:g}"
        )
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


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `to_dict` gave in an earlier version, or a part of that, by today's keys."""
    values = dict(values)
    if "dataset" in values:  # the name of `data` before there were other sizes than 28 x 28
        values |= {"data": values.pop("dataset"), "image_shape": [28, 28, 1]}
    if (limit := values.pop("limit", None)) is not None:  # bounded both numbers of images
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
