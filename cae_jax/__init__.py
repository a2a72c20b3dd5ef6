"""Convolutional autoencoders on 28 x 28 images.

``fit`` trains, ``load`` opens a trained run, ``TrainConfig`` says what to train.

Array names carry their shape where they cross functions: ``x_BxHxWxC`` has rank 4. The letters:
N examples of a data set, B images of a batch, S steps of an epoch, H rows, W columns, C channels,
F output features.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cae_jax.config import TrainConfig
    from cae_jax.errors import UserError
    from cae_jax.models.inference import Autoencoder, load
    from cae_jax.runs.fit import FitResult, fit

__all__ = ["Autoencoder", "FitResult", "TrainConfig", "UserError", "fit", "load"]

_MODULES = {
    "Autoencoder": "models.inference",
    "FitResult": "runs.fit",
    "TrainConfig": "config",
    "UserError": "errors",
    "fit": "runs.fit",
    "load": "models.inference",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: JAX, Orbax and matplotlib take seconds, which a command line that only
    # shows its help or refuses a flag should not cost.
    if name in _MODULES:
        return getattr(importlib.import_module(f"cae_jax.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
