"""Builds the Optax optimizer and the learning rate schedule of a config."""

import itertools

import optax

from cae_jax.config import TrainConfig
from cae_jax.training.soap import scale_by_soap


def build_optimizer(config: TrainConfig, total_steps: int) -> optax.GradientTransformation:
    """Builds the optimizer of a config.

    Args:
        config: names the optimizer, its hyperparameters and the schedule.
        total_steps: steps of the whole training, after which a cosine schedule reaches 0.
    """
    rate = build_schedule(config, total_steps)
    if config.optimizer == "soap":
        soap = scale_by_soap(config.b1, config.b2, config.eps)
        optimizer = optax.chain(soap, optax.scale_by_learning_rate(rate))
    elif config.optimizer == "adam":
        optimizer = optax.adam(rate, config.b1, config.b2, config.eps)
    elif config.optimizer == "nadam":
        optimizer = optax.nadam(rate, config.b1, config.b2, config.eps)
    elif config.optimizer == "adamw":
        optimizer = optax.adamw(
            rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay
        )
    elif config.optimizer == "adadelta":
        optimizer = optax.adadelta(rate, config.rho, config.eps)
    else:
        optimizer = optax.sgd(rate, config.momentum)
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.on_nan == "skip":
        optimizer = optax.apply_if_finite(optimizer, config.max_skips)
    # One vector of all parameters instead of an array per layer: fewer, larger kernels per step.
    # SOAP needs to see the layers, and groups them itself.
    return optimizer if config.optimizer == "soap" else optax.flatten(optimizer)


def build_schedule(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """Builds the learning rate as a function of the step; see `build_optimizer`."""
    steps = [epochs * total_steps // config.epochs for epochs in (0, *config.restarts)]
    phases = [b - a for a, b in itertools.pairwise([*steps, total_steps])]
    if config.schedule == "constant":
        return _phase(config, phases[0])
    return optax.join_schedules([_phase(config, phase) for phase in phases], steps[1:])


def _phase(config: TrainConfig, steps: int) -> optax.Schedule:
    """A warm-up and what follows it."""
    warmup_steps = min(config.warmup_steps, steps // 2)  # short runs warm up too
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, steps - warmup_steps)
    else:
        after = optax.constant_schedule(config.learning_rate)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, config.learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])
