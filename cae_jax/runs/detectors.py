"""Keeps the detector of a run in its directory: fitted once, for one state of the parameters."""

import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from cae_jax import atomic
from cae_jax.config import TrainConfig
from cae_jax.models import detection
from cae_jax.models.detection import Detector
from cae_jax.models.inference import Autoencoder
from cae_jax.runs import environment, pretrained

logger = logging.getLogger(__name__)
NAME = "detector.npz"


def read(run: Path, autoencoder: Autoencoder) -> Detector | None:
    """The detector of a run for its parameters; None if there is none, or of others."""
    try:
        with (run / NAME).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["run"]) != autoencoder.digest:
                return None
            return Detector(*(arrays[name] for name in Detector._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # it is fitted again


def images(run: Path, config: TrainConfig, **where: Any) -> tuple[np.ndarray, np.ndarray]:
    """The images that a detector is fitted to, and those that calibrate it.

    Args:
        run: directory of the run.
        config: of the run, with the path where its images are.
        where: see `cae_jax.data.load_split`.

    Returns:
        uint8 ``[N, height, width, channels]``: training images and all test images; of pairs the
        inputs.

    Raises:
        UserError: the images are not there.
    """
    splits = ("train", "test")
    train, test = (environment.load_split(run, config, split, **where)[0] for split in splits)
    train = detection.sample(train[: config.train_examples])
    if config.pairs:  # the inputs lie after the targets
        train, test = (each[..., each.shape[-1] // 2 :] for each in (train, test))
    return train, test


def fit(run: Path, autoencoder: Autoencoder, train: np.ndarray, test: np.ndarray) -> Detector:
    """Fits the detector of a run and keeps it there, unless that is a model without a training.

    Args:
        run: directory of the run.
        autoencoder: of the run.
        train, test: see `images`.

    Raises:
        UserError: the directory cannot be written.
    """
    logger.info("Fitting a detector to %d training images, calibrated on %d", len(train), len(test))
    detector = detection.fit(autoencoder.of_pixels, train, test)
    if not pretrained.is_model(run):
        with (
            atomic.writing(run),
            atomic.replacing(run / NAME) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(file, run=autoencoder.digest, **detector._asdict())
    return detector
