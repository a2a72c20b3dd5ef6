"""Splits members off a population: each becomes a run of its own."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cae_jax import atomic
from cae_jax.config import TrainConfig
from cae_jax.models.autoencoders import Model, scale
from cae_jax.models.inference import Autoencoder
from cae_jax.models.summary import layer_table
from cae_jax.ops.backend import Backend
from cae_jax.runs import environment, history, tensorboard
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.environment import digest
from cae_jax.runs.folder import checkpoint_folder, open_run
from cae_jax.training import programs
from cae_jax.training.step import TrainState
from cae_jax.training.validation import noisy


class Setup(NamedTuple):
    """The members by name, the structure of their model, its backend and their images."""

    members: dict[str, TrainConfig]
    model: Model
    backend: Backend
    train_images: np.ndarray
    test_images: np.ndarray

    @property
    def names(self) -> list[str]:
        return list(self.members)

    @property
    def configs(self) -> list[TrainConfig]:
        return list(self.members.values())

    @property
    def config(self) -> TrainConfig:
        """Of one of the members, for what they share."""
        return self.configs[0]

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return programs.steps_per_epoch(self.config, len(self.train_images))

    @property
    def digest(self) -> str:
        return digest(self.config, self.train_images, self.test_images)

    def autoencoder(self) -> Autoencoder:
        """The model without parameters, for `Autoencoder.with_params`."""
        return Autoencoder(self.config, self.model, self.backend)


class Splitter:
    """Writes the runs of members.

    Args:
        setup: of the population.
        folder: directory of the population.
    """

    def __init__(self, setup: Setup, folder: Path) -> None:
        self._setup, self._folder, self._digest = setup, folder, setup.digest
        self._autoencoder = setup.autoencoder()
        self._noise = programs.noise(setup.config, setup.model, len(setup.test_images))
        self._images = jax.device_put(setup.test_images)

    def write(
        self,
        name: str,
        state: TrainState,
        rows: list[history.Row],
        details: dict[str, Any] | None = None,
    ) -> None:
        """Writes the run of a member.

        Args:
            name: of the member.
            state: its training state.
            rows: its history.
            details: further entries of ``result.json``; None for a run that is not finished.
        """
        run, config = self._folder / name, self._setup.members[name]
        with (
            open_run(run, config, overwrite=False) as folder,
            Checkpoints(checkpoint_folder(run), config, folder.check) as checkpoints,
        ):
            with folder.writing():
                environment.record(run, self._setup.backend, self._digest)
                table = layer_table(self._setup.model.topology)
                atomic.write_text(run / "summary.txt", table + "\n")
                history.rewrite(run / history.NAME, rows)
                with contextlib.closing(tensorboard.Writer(run / "tensorboard", 1)) as writer:
                    for row in rows:
                        writer.add_row(row)
            ended = bool(rows) and rows[-1].step == int(state.step)
            checkpoints.save(state, rows[-1].val_loss if ended else None, rows)
            checkpoints.wait()
            if details is not None:
                with folder.writing():
                    self._write_results(run, config, state, rows, details)

    def _write_results(
        self,
        run: Path,
        config: TrainConfig,
        state: TrainState,
        rows: list[history.Row],
        details: dict[str, Any],
    ) -> None:
        from cae_jax.runs import results

        inputs = noisy(self._noise, self._images, config.seed)
        originals, noisy_ones = (
            np.asarray(scale(images[: results.PICTURES])) for images in (self._images, inputs)
        )
        autoencoder = self._autoencoder.with_params(config, state.params)
        results.write(run, autoencoder, rows, originals, noisy_ones, details)
