"""Times trainings until the validation loss reaches a value."""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.frameworks.case import ADAM, BenchmarkCase, run_case
from cae_jax.config import TrainConfig, peak_rate, to_dict

# Peak rates of Adam under a cosine schedule of 4 epochs with 500 steps of warm-up, which with most
# of them are enough; the best rate is that with the least seconds of one training.
PEAKS = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
COSINE = dataclasses.replace(ADAM, schedule="cosine", epochs=4, warmup_steps=500)


def measure(
    target: float,
    ours: TrainConfig,
    frameworks: Sequence[str],
    seeds: int,
    data_dir: Path | None,
) -> list[dict[str, Any]]:
    """Measures each recipe with the seeds 0, 1, ..., all recipes in turn.

    Args:
        target: loss on the test images that ends a training.
        ours: the recipe of cae-jax.
        frameworks: others, which are trained with Adam at 1e-3, and with their best peak rate.
        seeds: trainings of each recipe, each in a process of its own.
        data_dir: see `cae_jax.data.load_split`.
    """
    with tempfile.TemporaryDirectory() as folder:

        def train(framework: str, config: TrainConfig, seed: int) -> dict[str, Any]:
            print(f"{framework}, {_name(config)}, seed {seed}", file=sys.stderr, flush=True)
            case = BenchmarkCase(
                framework=framework,
                config=to_dict(dataclasses.replace(config, seed=seed)),
                data_dir=None if data_dir is None else str(data_dir),
                task="reach",
                target=target,
            )
            return run_case(case, Path(folder))

        def seconds(framework: str, config: TrainConfig) -> float:
            return train(framework, config, seed=0).get("seconds", float("inf"))

        train("auto", ours, seed=0)  # compiles the kernel and fills the caches
        recipes = [("auto", ours)]
        for name in frameworks:
            peaks = [dataclasses.replace(COSINE, learning_rate=peak) for peak in PEAKS]
            best = min(peaks, key=lambda config, name=name: seconds(name, config))
            recipes += [(name, ADAM), (name, best)]
        rows: list[dict[str, Any]] = [
            {"framework": name, "recipe": _name(config), "config": to_dict(config), "failed": []}
            | {key: [] for key in ("seconds", "whole_seconds", "epochs")}
            for name, config in recipes
        ]
        for seed in range(seeds):
            for (name, config), row in zip(recipes, rows, strict=True):
                for key, value in train(name, config, seed).items():
                    row[key].append(value)
    return rows


def _name(config: TrainConfig) -> str:
    return f"{config.optimizer}, {peak_rate(config):g}, {config.schedule}"
