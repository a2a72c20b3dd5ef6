"""Builds the Optax optimizer and the learning rate schedule of a config."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from cae_jax.config import TrainConfig, peak_rate
from cae_jax.training.soap import scale_by_soap


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decay:
    """A decay rate as an argument of a program, with the bits that it has as a constant of one.

    Attributes:
        rate: float32.
        complement: float32, 1 - rate, which Optax computes of a Python number in double precision.
    """

    rate: Any
    complement: Any

    def __rsub__(self, one: int) -> Any:
        return self.complement

    def __mul__(self, other: Any) -> Any:
        return self.rate * other

    def __pow__(self, other: Any) -> Any:
        return self.rate**other


def as_arguments(config: TrainConfig, fields: Sequence[str]) -> dict[str, Any]:
    """The hyperparameters of some fields as arguments of a program, see `build_optimizer`."""
    decays = {name: getattr(config, name) for name in fields if name in ("b1", "b2", "rho")}
    return {
        **{name: np.float32(getattr(config, name)) for name in fields},
        **{name: Decay(np.float32(x), np.float32(1 - x)) for name, x in decays.items()},
    }


def build_optimizer(
    config: TrainConfig,
    total_steps: int,
    numbers: Mapping[str, Any] | None = None,
    soap: Any = None,
) -> optax.GradientTransformation:
    """Builds the optimizer of a config.

    Args:
        config: names the optimizer, its hyperparameters and the schedule.
        total_steps: steps of the training, after which a cosine schedule reaches 0.
        numbers: hyperparameters by field in place of the config's, such as traced arrays.
        soap: `kernel` of `scale_by_soap`.
    """
    values = {**vars(config), **(numbers or {})}
    rate = build_schedule(config, total_steps, values["learning_rate"])
    b1, b2, eps = values["b1"], values["b2"], values["eps"]
    if config.optimizer == "soap":
        optimizer = optax.chain(
            scale_by_soap(b1, b2, eps, soap), optax.scale_by_learning_rate(rate)
        )
    elif config.optimizer == "adam":
        optimizer = optax.adam(rate, b1, b2, eps)
    elif config.optimizer == "nadam":
        optimizer = optax.nadam(rate, b1, b2, eps)
    elif config.optimizer == "adamw":
        optimizer = optax.adamw(rate, b1, b2, eps, weight_decay=values["weight_decay"])
    elif config.optimizer == "adadelta":
        optimizer = optax.adadelta(rate, values["rho"], eps)
    else:
        optimizer = optax.sgd(rate, values["momentum"])
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.on_nan == "skip":
        optimizer = optax.apply_if_finite(optimizer, config.max_skips)
    # One vector of all parameters takes fewer, larger kernels per step than an array per layer.
    # SOAP needs the layers, and groups them itself.
    return optimizer if config.optimizer == "soap" else optax.flatten(optimizer)


def build_schedule(config: TrainConfig, total_steps: int, rate: Any = None) -> optax.Schedule:
    """Builds the learning rate as a function of the step.

    Args:
        config: names the schedule.
        total_steps: see `build_optimizer`.
        rate: the peak; None takes the config's.
    """
    rate = peak_rate(config) if rate is None else rate
    steps = [epochs * total_steps // config.epochs for epochs in (0, *config.restarts)]
    phases = [b - a for a, b in itertools.pairwise([*steps, total_steps])]
    if config.schedule == "constant":
        return _phase(config, rate, phases[0])
    return optax.join_schedules([_phase(config, rate, phase) for phase in phases], steps[1:])


def warmup(config: TrainConfig, steps: int) -> int:
    """Steps of the warm-up of a training or phase of `steps`; short ones warm up too."""
    return min(config.warmup_steps, steps // 2)


def _phase(config: TrainConfig, rate: Any, steps: int) -> optax.Schedule:
    """A warm-up, and the schedule after it."""
    warmup_steps = warmup(config, steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, steps - warmup_steps)
    else:
        after = optax.constant_schedule(rate)
    if warmup_steps == 0:
        return after
    rise = optax.linear_schedule(0.0, rate, warmup_steps)
    return optax.join_schedules([rise, after], [warmup_steps])
