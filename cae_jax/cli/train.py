"""Trains an autoencoder; run again in the same workdir, it resumes.

    python scripts/train.py --config configs/fashion_mnist.py --workdir runs/fashion_mnist

Every field of the config is a flag too and overrides it: --epochs 50 --seed 1.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

import cae_jax
from cae_jax.cli import common
from cae_jax.config import load_config
from cae_jax.ops import cache
from cae_jax.runs.interruption import Interrupted

DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "fashion_mnist.py"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Trains an autoencoder; run again in the same workdir, it resumes."""

    train: tyro.conf.OmitArgPrefixes[cae_jax.TrainConfig]

    config: Path = DEFAULT_CONFIG
    """Python file with get_config(); the flags of its fields override what it gives."""

    workdir: Path | None = None
    """Folder of the run; None takes runs/ and the name of the config file."""

    overwrite: bool = False
    """Start anew where a run exists."""

    data_dir: Path | None = None
    """Where TFDS keeps data sets; None takes TFDS_DATA_DIR, else TFDS's own default."""

    archives: Path | None = None
    """Folder with the four original .gz archives; None takes shipped or downloaded ones."""

    chunk_steps: int = 67
    """Steps between two updates of the progress bar; the result does not depend on it."""

    method: Literal["auto", "conv", "phase", "fused"] = "auto"
    """How the network is computed: plain convolutions, matmuls, or one native call (CPU only)."""


def main() -> None:
    with common.user_errors(), common.interruptible():
        flags = common.parse(
            Flags, default=Flags(train=load_config(common.config_path(DEFAULT_CONFIG)))
        )
        cache.use_compilation_cache()
        result = cae_jax.fit(
            flags.train,
            flags.workdir or Path("runs") / flags.config.stem,
            overwrite=flags.overwrite,
            data_dir=flags.data_dir,
            archives=flags.archives,
            chunk_steps=flags.chunk_steps,
            method=flags.method,
        )
        if result.interrupted is not None:
            sys.argv = [argument for argument in sys.argv if argument != "--overwrite"]
            raise Interrupted(result.interrupted)


if __name__ == "__main__":
    main()
