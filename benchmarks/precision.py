"""Compares the precisions by the validation loss that the same trainings reach.

    python -m benchmarks.precision --train-examples 60000 --epochs 20
    python -m benchmarks.precision --configs simple deep --json precision.json

The trainings of a seed begin with the same parameters and see the same images in the same order,
with the same noise; differences from float32 are paired by seed. Speed is not compared: a CPU
converts bfloat16 to float32 and back.
"""

import dataclasses
import itertools
import statistics
from pathlib import Path
from typing import Any, Literal

from cae_jax import atomic, data, markdown
from cae_jax.cli import benchmark, common
from cae_jax.cli.configs import load_config
from cae_jax.config import Precision, TrainConfig
from cae_jax.models.topology import from_config
from cae_jax.ops import cache
from cae_jax.ops.backend import choose
from cae_jax.runs.job import Job

HEADER = ["config", "precision", "val_loss", "minus float32", "of each seed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Compares the precisions by the validation loss that the same trainings reach."""

    configs: tuple[str, ...] = ("fashion_mnist", "denoise")
    """Shipped configs or Python files."""

    precisions: tuple[Precision, ...] = ("bf16",)
    """Compared with float32."""

    backend: Literal["xla", "matmul"] = "matmul"
    """Computes the layers."""

    seeds: int = 5
    """Trainings of each precision."""

    epochs: int = 4
    """Passes over the training images."""

    train_examples: int = 12_800
    """Training images."""

    json: Path | None = None
    """Write the losses to this file too."""

    data: common.Data = dataclasses.field(default_factory=common.DataFlags)


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        atomic.check_output(flags.json)
        cache.use_compilation_cache()
        losses: dict[str, dict[str, list[float]]] = {}
        for name, precision in itertools.product(flags.configs, ("float32", *flags.precisions)):
            config = dataclasses.replace(
                load_config(name),
                epochs=flags.epochs,
                train_examples=flags.train_examples,
                precision=precision,
            )
            losses.setdefault(name, {})[precision] = train(flags, config)
        print(markdown.table(HEADER, rows(losses)))
        settings = {"backend": flags.backend, "epochs": flags.epochs}
        settings["train_examples"] = flags.train_examples
        common.write_json(flags.json, {**benchmark.environment(), **settings, "val_loss": losses})


def train(flags: Flags, config: TrainConfig) -> list[float]:
    """The validation loss of each seed after the last epoch."""
    images = data.load(config, **vars(flags.data))
    config = images.resolve(config)
    chosen = choose(from_config(config), flags.backend, precision=config.precision)
    job, losses = Job(config, chosen, images), []
    for seed in common.progress(range(flags.seeds), config.precision, "seed"):
        members = [dataclasses.replace(config, seed=seed)]
        trainer, state = job.trainer(members), job.initial_state(members)
        for epoch in range(1, config.epochs + 1):
            state = trainer.run(state, epoch, 0, trainer.steps).state
        losses.append(trainer.validation.evaluate(state.params)[0].val_loss)
    return losses


def rows(losses: dict[str, dict[str, list[float]]]) -> list[list[Any]]:
    """The rows of the table: means over the seeds, and differences paired by seed."""
    table = []
    for name, by_precision in losses.items():
        for precision, values in by_precision.items():
            pairs = zip(values, by_precision["float32"], strict=True)
            differences = [ours - theirs for ours, theirs in pairs]
            cells = [f"{statistics.mean(values):.5f}", "", ""]
            if precision != "float32":
                cells[1] = f"{statistics.mean(differences):+.5f}"
                cells[2] = " ".join(f"{each:+.5f}" for each in differences)
            table.append([name, precision, *cells])
    return table


if __name__ == "__main__":
    main()
