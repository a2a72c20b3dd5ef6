"""Kills trainings at random moments, resumes them, and compares what they end with bit by bit.

python -m benchmarks.kill_and_resume --kills 100
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

from benchmarks.kill_and_resume import soak
from cae_jax import UserError
from cae_jax.cli import common

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Flags:
    """Kills trainings at random moments, resumes them, and compares the ends bit by bit."""

    kills: int = 100
    """Signals to send: mostly SIGKILL, some SIGTERM and SIGINT."""

    config: Path = ROOT / "configs" / "fashion_mnist.py"
    """Python file with get_config()."""

    train_examples: int = 5000
    """Train on the first so many images only."""

    epochs: int = 20
    """Epochs of a training."""

    fresh: bool = True
    """Prepare the data and compile anew in each run, so that kills meet that too."""

    seed: int = 0
    """Seed of the moments."""


def main() -> None:
    with common.user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = common.parse(Flags)
        if flags.kills < 1:
            raise UserError(f"kills is {flags.kills}; it takes a whole number of at least 1")
        train = ROOT / "scripts" / "train.py"
        command = [sys.executable, str(train), "--config", str(flags.config)]
        command += ["--train-examples", str(flags.train_examples), "--epochs", str(flags.epochs)]
        soak(command, Path(folder) / "soak", flags.kills, fresh=flags.fresh, seed=flags.seed)


if __name__ == "__main__":
    main()
