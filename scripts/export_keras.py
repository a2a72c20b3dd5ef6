"""Writes a trained autoencoder as a file that keras.models.load_model opens.

python scripts/export_keras.py runs/fashion_mnist model.keras
"""

import dataclasses
from pathlib import Path

import tyro

import cae_jax
from cae_jax.cli import common
from cae_jax.interop import keras


@dataclasses.dataclass(frozen=True)
class Flags:
    """Writes a trained autoencoder as a file that keras.models.load_model opens.

    The model takes images in [0, 1] [N, 28, 28, 1], a fully connected one [N, 784], and gives
    them back in the same shape.
    """

    run: tyro.conf.Positional[Path]
    """Folder that training wrote."""

    file: tyro.conf.Positional[Path]
    """File to write; it ends in .keras."""

    best: bool = False
    """Take the checkpoint of the lowest val_loss instead of the newest one."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        autoencoder = cae_jax.load(flags.run, best=flags.best, method="conv")
        keras.write(flags.file, autoencoder)
        print(f"{flags.file}: {autoencoder.parameters:,} parameters of {flags.run}")


if __name__ == "__main__":
    main()
