"""Kills trainings at random times, resumes them, and compares their final states bit by bit.

python -m benchmarks.kill_and_resume --kills 100
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

from benchmarks.kill_and_resume import stress
from cae_jax import UserError
from cae_jax.cli import common

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Flags:
    """Kills trainings at random times, resumes them, and compares their final states."""

    kills: int = 100
    """Signals to send: mostly SIGKILL, some SIGTERM and SIGINT."""

    config: Path = ROOT / "configs" / "fashion_mnist.py"
    """Python file with get_config()."""

    train_examples: int = 5000
    """Number of training images."""

    epochs: int = 20
    """Epochs per training."""

    fresh: bool = True
    """Prepare the data and compile in each run, so that kills hit these phases too."""

    damage: bool = True
    """Flip a bit of a file, or cut it off, after half of the kills."""

    seed: int = 0
    """Seed of the times and the damage."""


def main() -> None:
    with common.user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = common.parse(Flags)
        if flags.kills < 1:
            raise UserError(f"`kills` is {flags.kills}; it takes a whole number of at least 1")
        train = ROOT / "scripts" / "train.py"
        command = [sys.executable, str(train), "--config", str(flags.config)]
        command += ["--train-examples", str(flags.train_examples), "--epochs", str(flags.epochs)]
        options = {"fresh": flags.fresh, "seed": flags.seed, "damage": flags.damage}
        stress(command, Path(folder) / "runs", flags.kills, **options)


if __name__ == "__main__":
    main()
