"""What a finished run leaves besides its checkpoints: two pictures and ``result.json``."""

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cae_jax import atomic, figures
from cae_jax.config import to_dict
from cae_jax.models import autoencoders
from cae_jax.models.inference import Autoencoder
from cae_jax.runs import history
from cae_jax.training.trainer import Programs, device_name

_PACKAGES = ("cae-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write(
    workdir: Path,
    autoencoder: Autoencoder,
    rows: list[history.Row],
    programs: Programs,
    facts: dict[str, Any],
) -> None:
    """Writes the pictures, then ``result.json``, whose presence says that the run is finished.

    Args:
        workdir: folder of the run.
        autoencoder: after the last epoch.
        rows: of the history.
        programs: have the test images.
        facts: go into ``result.json``.
    """
    originals, inputs = (
        np.asarray(autoencoders.scale(images[:10]))
        for images in (programs.test_images, programs.test_inputs)
    )
    noisy = {} if autoencoder.config.noise == "none" else {"noisy": inputs}
    pictures = {"original": originals, **noisy, "reconstruction": autoencoder.reconstruct(inputs)}
    figures.save_rows(workdir / "reconstructions.png", pictures)
    columns = {name: [getattr(row, name) for row in rows] for name in history.Row._fields}
    figures.save_curves(workdir / "history.png", {workdir.name: columns})
    best = min(rows, key=lambda row: row.val_loss)
    atomic.write_json(
        workdir / "result.json",
        {
            "final": rows[-1]._asdict(),
            "best": best._asdict(),
            "epoch_seconds_median": float(np.median(columns["epoch_seconds"])),
            # compile_seconds is null where a resumption had nothing left to compile for.
            **facts,
            "device": device_name(),
            "versions": {name: metadata.version(name) for name in _PACKAGES},
            "config": to_dict(autoencoder.config),
        },
    )
