"""Times the epochs of populations: many members at once, by one program or in turn.

    python -m benchmarks.population --members 1 8 64 512 --json population.json

Members differ in their seed. The first epoch is not counted; epochs exclude evaluation and
compilation. On a CPU members take turns unless --together is given.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from cae_jax import atomic, markdown
from cae_jax.cli import benchmark, common
from cae_jax.config import TrainConfig
from cae_jax.data import Dataset
from cae_jax.models import autoencoders
from cae_jax.models.topology import from_config
from cae_jax.ops import cache
from cae_jax.ops.backend import Backend, choose
from cae_jax.training.step import TrainState, make_keys
from cae_jax.training.trainer import Trainer, initial_state, stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(common.ConfigFlags):
    members: tuple[int, ...] = (1, 8, 64)
    """Numbers of members."""

    timed: int = 3
    """Timed epochs."""

    backend: common.Backend = "auto"
    """How the layers are computed."""

    together: bool = jax.default_backend() != "cpu"
    """Compute all members by one program; else they take turns."""

    json: Path | None = None
    """Write the measurements to this file too."""

    data: common.Data = dataclasses.field(default_factory=common.DataFlags)


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        atomic.check_output(flags.json)
        cache.use_compilation_cache()
        phases: dict[str, float] = {}
        images = benchmark.start(
            benchmark.Flags(config=flags.config, train=flags.train, data=flags.data), phases
        )
        cases = [measure(flags, images, members) for members in flags.members]
        print(
            markdown.table(["members", "s/epoch", "s/epoch of a member", "compile, s"], rows(cases))
        )
        results = {
            "config": flags.config,
            "optimizer": flags.train.optimizer,
            "batch_size": flags.train.batch_size,
            **benchmark.environment(),
            **benchmark.device_and_backend(_backend(flags)),
            "together": flags.together,
            "train_images": len(images.train),
            "populations": cases,
        }
        if flags.json:
            with atomic.output_file(flags.json) as file:
                atomic.write_json(file, results)


def _backend(flags: Flags) -> Backend:
    return choose(from_config(flags.train), flags.backend, precision=flags.train.precision)


def measure(flags: Flags, images: Dataset, members: int) -> dict[str, Any]:
    """Measures one population; as JSON types."""
    config = dataclasses.replace(flags.train, epochs=1 + flags.timed)
    configs = [dataclasses.replace(config, seed=seed) for seed in range(members)]
    backend = _backend(flags)
    model, shared = autoencoders.abstract(config), (backend, images.train, images.validation)
    began = time.perf_counter()
    first = Trainer(configs if flags.together else configs[:1], model, *shared)
    compiled = time.perf_counter() - began
    groups = [configs] if flags.together else [[each] for each in configs]
    trainers = [first.with_members(group) for group in groups]
    states = [initial_states(config, len(group), len(images.train)) for group in groups]
    epochs, evaluations, losses = [], [], []
    for epoch in range(1, config.epochs + 1):
        began = time.perf_counter()
        for k, trainer in enumerate(trainers):
            states[k] = trainer.run(states[k], epoch, 0, trainer.steps).state
        ended = time.perf_counter()
        losses = [
            score.val_loss
            for trainer, state in zip(trainers, states, strict=True)
            for score in trainer.validation.evaluate(state.params)
        ]
        epochs.append(ended - began)
        evaluations.append(time.perf_counter() - ended)
    device = jax.devices()[0].memory_stats() or {}
    return {
        "members": members,
        "compile_seconds": compiled,
        "epoch_seconds": benchmark.spread(epochs[1:]),
        "member_epoch_seconds": benchmark.spread([each / members for each in epochs[1:]]),
        "evaluation_seconds": benchmark.spread(evaluations[1:]),
        "val_loss_median": float(np.median(losses)),
        "peak_memory_bytes_so_far": device.get("peak_bytes_in_use"),
    }


def initial_states(config: TrainConfig, members: int, examples: int) -> TrainState:
    """The same parameters for all members of a group, whose order of the images differs."""
    model = autoencoders.build(config, nnx.Rngs(params=make_keys(config.seed).init))
    state = jax.tree.map(np.asarray, initial_state(config, model, examples))
    return jax.device_put(stack([state] * members))


def rows(cases: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            str(case["members"]),
            *(f"{case[name]['median']:.4f}" for name in ("epoch_seconds", "member_epoch_seconds")),
            f"{case['compile_seconds']:.1f}",
        ]
        for case in cases
    ]


if __name__ == "__main__":
    main()
