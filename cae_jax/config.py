"""The typed description of one training run."""

import dataclasses
import difflib
import math
import runpy
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cae_jax.errors import UserError
from cae_jax.noises import check_level

Noise = Literal[
    "none", "gaussian", "salt_and_pepper", "masking", "speckle", "poisson", "occlusion", "mix"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that determines the result of a training run, and nothing else.

    Checked on construction. ``dataclasses.replace(config, epochs=50)`` is the way to vary it. The
    defaults are the recipe of ``configs/fashion_mnist.py``.

    Raises:
        UserError: a value outside its range or choices, naming the field.
    """

    dataset: Literal["fashion_mnist", "mnist", "kmnist"] = "fashion_mnist"
    """Data set: 60,000 training and 10,000 test images of 28 x 28 pixels."""

    train_examples: int | None = None
    """Train on the first so many images only; None takes all of them."""

    test_examples: int | None = None
    """Validate on the first so many test images only; None takes all of them."""

    model: Literal["conv", "simple", "deep"] = "conv"
    """Network: convolutional, or fully connected with one (simple) or five (deep) hidden layers."""

    features: tuple[int, int, int] = (16, 8, 8)
    """Features of the three encoder convolutions; the decoder mirrors them. Model conv only."""

    noise: Noise = "none"
    """Noise on the inputs, the targets stay clean; mix takes one of the kinds for each image."""

    noise_level: float | None = None
    """How much: std (gaussian, speckle), fraction of the pixels (salt_and_pepper, masking), photons
    at white (poisson), side in pixels (occlusion); None takes the kind's default."""

    batch_size: int = 128
    """Images in a step; the last step of an epoch takes what is left."""

    epochs: int = 20
    """Passes over the training images."""

    optimizer: Literal["adam", "nadam", "adamw", "adadelta", "sgd"] = "adam"
    """Optax optimizer."""

    learning_rate: float = 2e-2
    """Peak learning rate."""

    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: constant, or a cosine down to 0 at the last step."""

    warmup_steps: int = 1500
    """Steps over which the learning rate rises linearly from 0; at most half of all steps."""

    b1: float = 0.9
    """Decay of the mean gradient. Optimizers adam, nadam, adamw."""

    b2: float = 0.99
    """Decay of the mean squared gradient. Optimizers adam, nadam, adamw."""

    rho: float = 0.95
    """Decay of both means. Optimizer adadelta."""

    eps: float = 1e-8
    """Term that keeps the division stable. All optimizers but sgd."""

    momentum: float = 0.0
    """Momentum. Optimizer sgd."""

    weight_decay: float = 0.0
    """Decoupled weight decay. Optimizer adamw."""

    clip_norm: float | None = None
    """Clip the gradient to this global norm; None does not clip."""

    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite ends the run, or its update is left out."""

    max_skips: int = 10
    """The most updates left out one after the other. on_nan skip only."""

    seed: int = 0
    """Seed of the initial parameters, of the order of the images and of the noise."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_ranges(self)


def _check_types(config: TrainConfig) -> None:
    for name, hint in typing.get_type_hints(TrainConfig).items():
        value: Any = getattr(config, name)
        if typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            if value not in choices:
                raise UserError(f"{name} is {value!r}; it takes {', '.join(choices)}")
        elif hint in (int, int | None):
            if type(value) is not int and not (value is None and hint is not int):
                raise UserError(f"{name} is {value!r}; it takes a whole number")
        elif hint in (float, float | None):
            if value is None and hint is not float:
                continue
            if not _is_finite_number(value):
                raise UserError(f"{name} is {value!r}; it takes a finite number")
            object.__setattr__(
                config, name, float(typing.cast(float, value))
            )  # 1 and 1.0 are the same config
        elif name == "features":
            if (
                not isinstance(value, (tuple, list))
                or len(value) != 3
                or not all(type(width) is int and width > 0 for width in value)
            ):
                raise UserError(f"features is {value!r}; it takes three positive whole numbers")
            object.__setattr__(config, name, tuple(value))


def _is_finite_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_ranges(config: TrainConfig) -> None:
    def check(name: str, accepted: bool, takes: str) -> None:
        if not accepted:
            raise UserError(f"{name} is {getattr(config, name)!r}; it takes {takes}")

    for name in ("batch_size", "epochs"):
        check(name, getattr(config, name) >= 1, "a whole number of at least 1")
    for name in ("train_examples", "test_examples"):
        value = getattr(config, name)
        check(name, value is None or value >= 1, "None or a whole number of at least 1")
    for name in ("b1", "b2", "rho", "momentum"):
        check(name, 0 <= getattr(config, name) < 1, "a number from 0 to below 1")
    check_level(config.noise, config.noise_level)
    check("learning_rate", config.learning_rate > 0, "a positive number")
    check("eps", config.eps > 0, "a positive number")
    for name in ("warmup_steps", "max_skips"):
        check(name, getattr(config, name) >= 0, "a whole number of at least 0")
    check("weight_decay", config.weight_decay >= 0, "a number of at least 0")
    check(
        "clip_norm", config.clip_norm is None or config.clip_norm > 0, "None or a positive number"
    )
    check("seed", 0 <= config.seed < 2**32, "a whole number from 0 to 4294967295")
    if config.train_examples is not None:
        check("batch_size", config.batch_size <= config.train_examples, "at most train_examples")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as plain JSON types, in the order of the fields."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
    }


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `to_dict`.

    Raises:
        UserError: an unknown key or a bad value.
    """
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; the keys are {', '.join(fields)}"
            raise UserError(f"unknown config key {key!r}{hint}")
    return TrainConfig(**values)


# In a wheel the configs are part of the package, in a clone they lie beside it.
_PACKAGE = Path(__file__).parent
_CONFIGS = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()),
    _PACKAGE / "configs",
)


def config_names() -> list[str]:
    """Names of the shipped configs, in alphabetical order."""
    return sorted(path.stem for path in _CONFIGS.glob("*.py"))


def load_config(config: str | Path) -> TrainConfig:
    """Runs a config file and returns what its ``get_config()`` gives.

    Args:
        config: path of a Python file, or the name of a shipped config, such as ``"denoise"``.

    Raises:
        UserError: no such file or name, the file raises, or it returns no `TrainConfig`.
    """
    path = _config_path(config)
    try:
        loaded = runpy.run_path(str(path))["get_config"]()
    except KeyError as error:
        if error.args != ("get_config",):
            raise UserError(f"config {path} raised KeyError: {error}") from error
        raise UserError(
            f"config {path} has no get_config(); define one that returns a TrainConfig"
        ) from None
    except UserError as error:
        raise UserError(f"config {path}: {error}") from error
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise UserError(f"config {path} raised {type(error).__name__}: {text}") from error
    if not isinstance(loaded, TrainConfig):
        raise UserError(
            f"config {path}: get_config() gave a {type(loaded).__name__}; it takes a TrainConfig"
        )
    return loaded


def _config_path(config: str | Path) -> Path:
    path, names = Path(config), config_names()
    if path.is_file():
        return path
    if str(config) in names:
        return _CONFIGS / f"{config}.py"
    what = f"{path} is not a file" if path.suffix == ".py" else f"{str(config)!r} is not known"
    raise UserError(f"config {what}; give one of {', '.join(names)} or a path to a Python file")
