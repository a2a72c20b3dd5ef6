"""Tries a recipe or a network without the test images: validates on the last 10,000 training
images of the data set and trains on those before, 50,000 of Fashion-MNIST.

    python -m benchmarks.tuning --config wide --learning-rate 1e-2 --seeds 3 --json tried.jsonl

Prints the config of each seed with its loss and PSNR after the first and the last epoch, and adds
them to a file of JSON lines.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cae_jax import data
from cae_jax.cli import common
from cae_jax.config import TrainConfig, to_dict
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.models.topology import from_config
from cae_jax.ops import cache
from cae_jax.ops.backend import choose
from cae_jax.training import step
from cae_jax.training.noise import build_corruption
from cae_jax.training.optimizer import build_optimizer, build_schedule
from cae_jax.training.trainer import steps_per_epoch
from cae_jax.training.validation import Validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(common.ConfigFlags):
    seeds: int = 1
    """Runs, with the seeds 0, 1, ..."""

    other: Literal["none", "muon", "kron"] = "none"
    """An optimizer that is not among the package's: Muon (optax.contrib.muon) or PSGD-Kron
    (pip install psgdax), with the learning rate, the schedule and b1 of the config."""

    held_out: int = 10_000
    """Training images to validate on."""

    average: float = 0.0
    """Decay of a running mean of the parameters, which is evaluated in their place; 0 for none."""

    json: Path | None = None
    """Add a line for each seed to this file."""

    data: common.Data = dataclasses.field(default_factory=common.DataFlags)


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        cache.use_compilation_cache()
        split = data.load(flags.train, **vars(flags.data))
        images = np.asarray(split.train)
        most = len(images) - flags.train.batch_size
        if not 1 <= flags.held_out <= most:
            raise UserError(
                f"--held-out is {flags.held_out}; with {len(images)} training images in batches of "
                f"{flags.train.batch_size} it takes a whole number from 1 to {most}"
            )
        for seed in range(flags.seeds):
            config = split.resolve(dataclasses.replace(flags.train, seed=seed))
            curve = train(config, flags, images[: -flags.held_out], images[-flags.held_out :])
            line = {"other": flags.other, "average": flags.average, **to_dict(config)}
            line |= {"first": curve[0], "last": curve[-1]}
            print(json.dumps(line), flush=True)
            if flags.json:
                with flags.json.open("a") as file:
                    file.write(json.dumps(line) + "\n")


def train(
    config: TrainConfig, flags: Flags, images: np.ndarray, held_out: np.ndarray
) -> list[tuple[float, float]]:
    """Loss in nats and PSNR in dB on the images held out, after each epoch."""
    backend = choose(from_config(config), precision=config.precision)
    model = autoencoders.build(config, nnx.Rngs(params=step.make_keys(config.seed).init))
    graphdef, params = nnx.split(model, nnx.Param)
    steps = steps_per_epoch(config, len(images))
    optimizer = averaged(build(config, flags.other, steps * config.epochs), flags.average)
    corrupt = build_corruption(config.noise, config.noise_level)
    run_steps = step.make_run_steps(graphdef, optimizer, corrupt, backend)
    state = step.init_state(model, optimizer, steps)
    validation = Validation([config], model, backend, held_out)
    keys, resident, curve = step.make_keys(config.seed), jax.device_put(images), []
    sizes = {"examples": len(images), "batch_size": config.batch_size}
    for epoch in range(1, config.epochs + 1):
        batches = step.epoch_batches(keys.order, jnp.int32(epoch), **sizes)
        state = run_steps(state, resident, batches, keys.noise, 0, steps)
        params = state.opt_state[1] if flags.average else state.params
        [score] = validation.evaluate(params)
        curve.append((round(score.val_loss, 5), round(score.val_psnr, 3)))
    return curve


def build(config: TrainConfig, other: str, total_steps: int) -> optax.GradientTransformation:
    if other == "none":
        return build_optimizer(config, total_steps)
    rate = build_schedule(config, total_steps)
    if other == "muon":
        return optax.contrib.muon(
            rate,
            beta=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=lambda params: jax.tree.map(kernel_as_matrix, params),
        )
    from psgdax.psgd import kron  # type: ignore[import-not-found]

    return kron(rate, b1=config.b1)


def kernel_as_matrix(leaf: jax.Array) -> Any:
    """For Muon: a kernel is a matrix [9 in, out], a vector takes Adam."""
    if leaf.ndim < 2:
        return None
    return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)


def averaged(inner: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Adds a running mean of the parameters to the state of an optimizer."""
    if not decay:
        return inner

    def init(params: optax.Params) -> Any:
        return inner.init(params), jax.tree.map(jnp.copy, params)  # to be donated

    def update(updates, state: Any, params: Any = None) -> tuple[optax.Updates, Any]:
        updates, inside = inner.update(updates, state[0], params)
        new = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state[1], new)
        return updates, (inside, mean)

    return optax.GradientTransformation(init, update)


if __name__ == "__main__":
    main()
