"""Regenerates docs/comparison.md, training missing runs first.

python -m benchmarks.study

Safe to interrupt; rerun to resume.
"""

import dataclasses
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import study
from cae_jax import UserError
from cae_jax.cli import common, process
from cae_jax.cli.configs import load_config
from cae_jax.config import TrainConfig
from cae_jax.ops import cache

ROOT = Path(__file__).resolve().parent.parent.parent
# Encoder features of the convolutional families; the code has 16 times the last number of values.
FAMILIES = {
    "convolutional, code 128": ((8, 8, 8), (32, 16, 8)),
    "convolutional, code 32": ((16, 8, 2), (32, 16, 2), (64, 32, 2)),
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Regenerates docs/comparison.md, training missing runs first. Safe to interrupt."""

    workdir: Path = Path("runs/compare")
    """Folder of the runs."""

    page: Path = ROOT / "docs" / "comparison.md"
    """The page; its figures go to the same folder."""

    seeds: int = 5
    """Runs per network, with seeds 0, 1, ..."""

    epochs: int | None = None
    """Epochs of every run; None keeps those of the configs."""

    train_examples: int | None = None
    """Number of training images; None takes all."""

    test_examples: int | None = None
    """Number of test images; None takes all."""

    baselines: bool = True
    """Include the classical denoisers (pip install "cae-jax[baselines]")."""

    data_dir: Path | None = None
    """TFDS data directory; None takes TFDS_DATA_DIR, else TFDS's default."""


def main() -> None:
    process.start(["python", *sys.argv])
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
    """Returns the networks of configs/ and the families."""

    def configs(*names: str) -> dict[str, TrainConfig]:
        return {name: shortened(load_config(ROOT / "configs" / f"{name}.py")) for name in names}

    def shortened(config: TrainConfig) -> TrainConfig:
        return replace(
            config,
            epochs=config.epochs if flags.epochs is None else flags.epochs,
            train_examples=flags.train_examples,
            test_examples=flags.test_examples,
        )

    # Tuned for the first one of them; the others have the recipe of the network nearest in width.
    narrow, wide = (configs(name)[name] for name in ("fashion_mnist", "wide"))
    frontier = {
        family: {
            f"conv-{'-'.join(map(str, features))}": replace(
                wide if features[0] >= 32 else narrow, features=features
            )
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
