"""The tables of a run for each quality, ``tables.npz``, with which its codes are compressed.

They are computed from the learned density once, and kept: the density in floats differs between
machines in its last digits. Tables belong to the parameters of a checkpoint.
"""

from pathlib import Path

import numpy as np

from cae_jax import atomic
from cae_jax.errors import UserError, naming
from cae_jax.models.autoencoders import fingerprint
from cae_jax.models.coding import STEPS, Tables
from cae_jax.models.inference import Autoencoder
from cae_jax.runs import pretrained

NAME = "tables.npz"
ByQuality = dict[int, Tables]


def check(run: Path, autoencoder: Autoencoder) -> None:
    """Raises a `UserError` if the codes of a run are not whole numbers."""
    if not autoencoder.topology.quantised:
        raise UserError(
            f"{run} was trained with `rate` 0, and its codes are not whole numbers; pass a run "
            "that was trained with another one, as the config compress_28 has it"
        )


def of_run(run: str | Path, autoencoder: Autoencoder) -> ByQuality:
    """The tables of a run; written if it has none for its parameters.

    Raises:
        UserError: see `check`; the file is damaged, or cannot be written.
    """
    path = pretrained.locate(run) / NAME
    check(path.parent, autoencoder)
    if path.is_file():
        fits, tables = _read(path, autoencoder)
        if fits:
            return tables
    with atomic.writing(path, "grant write permission"):
        return write(path, autoencoder)


def read(run: str | Path, autoencoder: Autoencoder) -> ByQuality:
    """The tables of a run that has them.

    Raises:
        UserError: see `check`; the file is missing, damaged, or of other parameters.
    """
    path = pretrained.locate(run) / NAME
    check(path.parent, autoencoder)
    if not path.is_file():
        raise UserError(
            f"{path} is missing, without which nothing decompresses; copy the file from the run "
            "that compressed"
        )
    fits, tables = _read(path, autoencoder)
    if not fits:
        raise UserError(
            f"{path} is of other parameters than the newest checkpoint; pass a copy of the run as "
            "it was when it compressed"
        )
    return tables


def write(path: Path, autoencoder: Autoencoder) -> ByQuality:
    """Writes the file atomically; raises an `OSError` if it cannot be written."""
    found = {quality: Tables.of(autoencoder.model, quality) for quality in STEPS}
    arrays = {
        f"{quality}.{name}": array
        for quality, tables in found.items()
        for name, array in tables._asdict().items()
    }
    digest = np.frombuffer(fingerprint(autoencoder.model), np.uint8)
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, parameters=digest, **arrays)
    return found


def _read(path: Path, autoencoder: Autoencoder) -> tuple[bool, ByQuality]:
    """Whether the tables in a file are those of the parameters, and the tables."""
    found, advice = {}, "remove the file, if nothing that it compressed is needed"
    with naming(path, "a file of tables", advice), np.load(path) as file:
        for quality in STEPS:
            _, *names = Tables._fields
            found[quality] = Tables(quality, *(file[f"{quality}.{name}"] for name in names))
            if not found[quality].is_valid():
                raise ValueError("its arrays do not belong together")
        digest = file["parameters"].tobytes()
    return digest == fingerprint(autoencoder.model), found
