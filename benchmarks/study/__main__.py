"""Trains all that docs/comparison.md compares, as far as it is missing, and writes that page.

python -m benchmarks.study

It can be broken off at any time and goes on where it was.
"""

import dataclasses
from dataclasses import replace
from pathlib import Path

from benchmarks import study
from cae_jax import UserError
from cae_jax.cli import common
from cae_jax.config import TrainConfig, load_config
from cae_jax.ops import cache

ROOT = Path(__file__).resolve().parent.parent.parent
# Encoder features of the convolutional family; 16 times the last number is the size of the code.
FAMILIES = {
    "convolutional, code 128": ((8, 8, 8), (32, 16, 8)),
    "convolutional, code 32": ((16, 8, 2), (32, 16, 2), (64, 32, 2)),
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Trains all that docs/comparison.md compares, as far as it is missing, and writes it."""

    workdir: Path = Path("runs/compare")
    """Folder of the runs."""

    page: Path = ROOT / "docs" / "comparison.md"
    """The page; its figures stand beside it."""

    seeds: int = 3
    """Runs of each network, with seeds 0, 1, ..."""

    epochs: int | None = None
    """Epochs of all trainings; None takes those of the configs."""

    train_examples: int | None = None
    """Train on the first so many images only; None takes all of them."""

    baselines: bool = True
    """Classical denoisers too (pip install "cae-jax[baselines]")."""

    data_dir: Path | None = None
    """Where TFDS keeps data sets; None takes TFDS_DATA_DIR, else TFDS's own default."""


def main() -> None:
    with common.user_errors(), common.interruptible():
        flags = common.parse(Flags)
        if flags.seeds < 1:
            raise UserError(f"seeds is {flags.seeds}; it takes a whole number of at least 1")
        cache.use_compilation_cache()
        study.run(
            plan(flags),
            flags.workdir,
            flags.page,
            with_baselines=flags.baselines,
            data_dir=flags.data_dir,
        )


def plan(flags: Flags) -> study.Plan:
    """The networks of the configs, and the families."""

    def configs(*names: str) -> dict[str, TrainConfig]:
        return {name: shortened(load_config(ROOT / "configs" / f"{name}.py")) for name in names}

    def shortened(config: TrainConfig) -> TrainConfig:
        return replace(
            config,
            epochs=config.epochs if flags.epochs is None else flags.epochs,
            train_examples=flags.train_examples,
        )

    recipe = shortened(TrainConfig())
    frontier = {
        family: {
            f"conv-{'-'.join(map(str, features))}": replace(recipe, features=features)
            for features in members
        }
        for family, members in FAMILIES.items()
    }
    frontier["convolutional, code 128"] |= configs("fashion_mnist")
    frontier["convolutional, code 256"] = configs("wide")
    dense = {f"fully connected, {name}": configs(name) for name in ("simple", "deep")}
    return study.Plan(
        denoising=configs("denoise", "denoise_wide", "denoise_simple", "denoise_deep"),
        mix=configs("denoise_mix"),
        reconstruction=configs("fashion_mnist", "wide", "simple", "deep"),
        frontier=frontier | dense,
        seeds=flags.seeds,
    )


if __name__ == "__main__":
    main()
