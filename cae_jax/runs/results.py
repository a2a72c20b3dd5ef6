"""Writes the results of a finished run: two figures and ``result.json``."""

import contextlib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cae_jax import atomic, figures
from cae_jax.config import to_dict
from cae_jax.models.inference import Autoencoder
from cae_jax.runs import history
from cae_jax.training.trainer import device_name

PICTURES = 10  # test images in the figure
_PACKAGES = ("cae-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write(
    workdir: Path,
    autoencoder: Autoencoder,
    rows: list[history.Row],
    originals: np.ndarray,
    inputs: np.ndarray,
    details: dict[str, Any],
) -> None:
    """Writes the figures, then ``result.json``, whose presence marks the run as finished.

    Args:
        workdir: directory of the run.
        autoencoder: the model after the last epoch.
        rows: the history, at least one row.
        originals: some test images ``[n, *image_shape]`` in [0, 1].
        inputs: the same with noise, if the config has any.
        details: further entries of ``result.json``.
    """
    noisy = {} if autoencoder.config.noise == "none" else {"noisy": inputs}
    images = {"original": originals, **noisy, "reconstruction": autoencoder.reconstruct(inputs)}
    figures.save_rows(workdir / "reconstructions.png", images)
    columns = {name: [getattr(row, name) for row in rows] for name in history.Row._fields}
    curves = {workdir.absolute().name: columns}
    figures.save_curves(workdir / "history.png", curves, loss=autoencoder.config.loss)
    best = min(rows, key=lambda row: row.val_loss)
    atomic.write_json(
        workdir / "result.json",
        {
            "final": rows[-1]._asdict(),
            "best": best._asdict(),
            "epoch_seconds_median": float(np.median(columns["epoch_seconds"])),
            **details,
            "device": device_name(),
            "versions": _versions(),
            "config": to_dict(autoencoder.config),
        },
    )


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # a clone that is not installed
            versions[name] = metadata.version(name)
    return versions
