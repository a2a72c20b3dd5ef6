"""Convolutional autoencoders on 28 x 28 images.

``fit`` trains, ``load`` opens a trained run, ``TrainConfig`` says what to train.

Array names carry their shape where they cross functions: ``x_BxHxWxC`` has rank 4. The letters:
N examples of a data set, B images of a batch, S steps of an epoch, H rows, W columns, C channels,
F output features.
"""

from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.inference import Autoencoder, load
from cae_jax.loop import FitResult, fit

__all__ = ["Autoencoder", "FitResult", "TrainConfig", "UserError", "fit", "load"]
