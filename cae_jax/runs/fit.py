"""Runs a training from its config to the files that it writes."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from cae_jax import atomic, data
from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.models.inference import Autoencoder
from cae_jax.models.topology import layer_table, of_config
from cae_jax.ops.backend import Backend, choose
from cae_jax.runs import history, results
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.epochs import Progress, resume, run_epochs
from cae_jax.runs.folder import checkpoint_folder, open_run
from cae_jax.runs.interruption import Interrupted, Interruption
from cae_jax.training.step import TrainState, make_keys
from cae_jax.training.trainer import Trainer, device_name, initial_state, steps_per_epoch

logger = logging.getLogger(__name__)


class FitResult(NamedTuple):
    """The result of `fit`.

    Attributes:
        autoencoder: the model after the last step.
        history: one row per epoch, including those before a resumption.
        interrupted: number of the signal that ended the training early; None without one.
    """

    autoencoder: Autoencoder
    history: list[history.Row]
    interrupted: int | None = None


def fit(
    config: TrainConfig,
    workdir: str | Path = "runs/fit",
    *,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    archives: str | Path | None = None,
    chunk_steps: int = 67,
    backend: str = "auto",
    on_epoch: Callable[[list[history.Row]], None] | None = None,
) -> FitResult:
    """Trains an autoencoder; called again with the same directory, it resumes.

    On SIGTERM and SIGINT (Ctrl-C, a notebook's interrupt) it finishes the current chunk of steps,
    saves, and returns; a second signal does not wait for the chunk.

    Args:
        config: the training.
        workdir: directory of the run; `cae_jax.runs.folder` lists its files.
        overwrite: start again where a run exists.
        data_dir, archives: see `cae_jax.data.load_split`.
        chunk_steps: steps between two checks for signals; without effect on the result.
        backend: see `cae_jax.ops.backend.choose`. The backends agree up to rounding; a run may be
            resumed by another one.
        on_epoch: called after each epoch with the history so far, for a live plot, say. An
            exception that it raises ends the training.

    Raises:
        UserError: unusable data or directory, a run of another config, another process that trains
            in it, or a number that became infinite or not-a-number.
        Interrupted: a signal came before there was a model.
    """
    if chunk_steps < 1:
        raise UserError(f"`chunk_steps` is {chunk_steps}; it takes a whole number of at least 1")
    workdir = Path(workdir)
    with Interruption() as interruption:
        chosen = choose(of_config(config), backend)
        images = data.load(config, data_dir=data_dir, archives=archives)
        interruption.check()
        with (
            open_run(workdir, config, overwrite=overwrite),
            Checkpoints(checkpoint_folder(workdir), config) as checkpoints,
        ):
            atomic.write_text(workdir / "summary.txt", layer_table(of_config(config)) + "\n")
            model = autoencoders.build(config, nnx.Rngs(params=make_keys(config.seed).init))
            setup = _Setup(config, model, chosen, images.train, images.test)
            progress = resume(workdir, checkpoints, setup.initial_state(), setup.steps)
            interrupted = None
            try:
                _train(setup, progress, interruption, chunk_steps, on_epoch)
            except Interrupted as stop:
                interruption.ignore()
                interrupted = stop.signal
                _save_interrupted(setup, progress, stop)
            return FitResult(setup.autoencoder(progress), progress.rows, interrupted)


class _Setup(NamedTuple):
    """A model, its backend and its images; the arguments of `Trainer`."""

    config: TrainConfig
    model: autoencoders.Model
    backend: Backend
    train_images: np.ndarray
    test_images: np.ndarray

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return steps_per_epoch(self.config, len(self.train_images))

    def initial_state(self) -> TrainState:
        return initial_state(self.config, self.model, len(self.train_images))

    def autoencoder(self, progress: Progress) -> Autoencoder:
        """The model with the parameters after the last step."""
        nnx.update(self.model, jax.device_put(progress.state.params))
        return Autoencoder(self.config, self.model, self.backend)


def _train(
    setup: _Setup,
    progress: Progress,
    interruption: Interruption,
    chunk_steps: int,
    on_epoch: Callable[[list[history.Row]], None] | None,
) -> None:
    """Runs the remaining epochs and writes the results."""
    interruption.check()
    workdir, epochs = progress.workdir, setup.config.epochs
    result = workdir / "result.json"
    if len(progress.rows) == epochs and result.exists():
        logger.info(
            f"{workdir} is finished after {epochs} epochs; set `overwrite=True` to start again"
        )
        return
    result.unlink(missing_ok=True)
    logger.info(f"Backend {setup.backend.name}: {setup.backend.reason}")
    started = time.perf_counter()
    trainer = interruption.call(Trainer, *setup)
    compile_seconds = time.perf_counter() - started
    logger.info(f"Compiled in {compile_seconds:.1f}s for {device_name()}")
    run_epochs(progress, trainer, chunk_steps, interruption, on_epoch)
    progress.checkpoints.wait()
    interruption.check()
    details = {"compile_seconds": compile_seconds, "backend": setup.backend.name}
    results.write(workdir, setup.autoencoder(progress), progress.rows, trainer, details)


def _save_interrupted(setup: _Setup, progress: Progress, stop: Interrupted) -> None:
    """Saves the state after the last chunk."""
    progress.save()
    progress.checkpoints.wait()
    kept = f", which {progress.workdir} keeps" if progress.step == progress.saved_step else ""
    total = setup.steps * setup.config.epochs
    logger.info(f"{stop} after step {progress.step} of {total}{kept}")
