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
import tyro
from flax import nnx

from cae_jax import atomic, markdown
from cae_jax.cli import benchmark, common
from cae_jax.config import TrainConfig
from cae_jax.data import Dataset
from cae_jax.models import autoencoders
from cae_jax.models.topology import of_config
from cae_jax.ops import cache
from cae_jax.ops.backend import choose
from cae_jax.training import population
from cae_jax.training.step import make_keys
from cae_jax.training.trainer import initial_state


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

    data: tyro.conf.OmitArgPrefixes[common.DataFlags] = dataclasses.field(
        default_factory=common.DataFlags
    )


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
            **benchmark.device_and_backend(choose(of_config(flags.train), flags.backend)),
            "together": flags.together,
            "train_images": len(images.train),
            "populations": cases,
        }
        if flags.json:
            with atomic.output_file(flags.json) as file:
                atomic.write_json(file, results)


def measure(flags: Flags, images: Dataset, members: int) -> dict[str, Any]:
    """Measures one population; as JSON types."""
    config = dataclasses.replace(flags.train, epochs=1 + flags.timed)
    configs = [dataclasses.replace(config, seed=seed) for seed in range(members)]
    backend = choose(of_config(config), flags.backend)
    arguments = (configs, autoencoders.abstract(config), backend, images.train, images.test)
    began = time.perf_counter()
    if flags.together:
        trained = population.Together(*arguments, members)
    else:
        trained = population.InTurn(*arguments)
    compiled = time.perf_counter() - began
    states = trained.put(initial_states(config, members, len(images.train)))
    epochs, evaluations, scores = [], [], []
    for epoch in range(1, config.epochs + 1):
        began = time.perf_counter()
        states = trained.run(states, trained.orders(epoch), 0, trained.steps).states
        ended = time.perf_counter()
        scores = trained.evaluate(states)
        epochs.append(ended - began)
        evaluations.append(time.perf_counter() - ended)
    device = jax.devices()[0].memory_stats() or {}
    return {
        "members": members,
        "compile_seconds": compiled,
        "epoch_seconds": benchmark.spread(epochs[1:]),
        "member_epoch_seconds": benchmark.spread([each / members for each in epochs[1:]]),
        "evaluation_seconds": benchmark.spread(evaluations[1:]),
        "val_loss_median": float(np.median([score.loss for score in scores])),
        "peak_memory_bytes_so_far": device.get("peak_bytes_in_use"),
    }


def initial_states(config: TrainConfig, members: int, examples: int) -> population.TrainState:
    """The same parameters for all members, whose order of the images differs."""
    model = autoencoders.build(config, nnx.Rngs(params=make_keys(config.seed).init))
    state = jax.tree.map(np.asarray, initial_state(config, model, examples))
    return population.stack([state] * members)


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
