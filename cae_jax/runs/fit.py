"""Runs a training from its config to the files that it writes."""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from cae_jax import atomic, data
from cae_jax.config import ARRAYS, TrainConfig, known_shape, resolved
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.models.autoencoders import scale
from cae_jax.models.inference import Autoencoder
from cae_jax.models.summary import layer_table
from cae_jax.ops.backend import Backend
from cae_jax.runs import environment, history
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.epochs import Chunks, Progress, resume, run_epochs, save_at
from cae_jax.runs.folder import MovedError, checkpoint_folder, is_finished, open_run
from cae_jax.runs.interruption import Interrupted, Interruption
from cae_jax.runs.load import load
from cae_jax.training.step import TrainState, make_keys
from cae_jax.training.trainer import Trainer, device_name, initial_state, steps_per_epoch

logger = logging.getLogger(__name__)


class FitResult(NamedTuple):
    """The result of `fit`.

    Attributes:
        autoencoder: the model after the last step.
        history: one row per epoch, including those before a resumption.
        steps: steps since the start of training.
        interrupted: number of the signal that ended the training early; None without one.
    """

    autoencoder: Autoencoder
    history: list[history.Row]
    steps: int
    interrupted: int | None = None


def fit(
    config: TrainConfig,
    workdir: str | Path = "runs/fit",
    *,
    overwrite: bool = False,
    start_from: str | Path | None = None,
    images: tuple[np.ndarray, np.ndarray] | None = None,
    data_dir: str | Path | None = None,
    verify_data: bool = False,
    chunk_steps: int | None = None,
    backend: str = "auto",
    on_epoch: Callable[[list[history.Row]], None] | None = None,
) -> FitResult:
    """Trains an autoencoder; called again with the same directory, it resumes.

    A finished run takes more epochs, see `TrainConfig.restarts`. On SIGTERM and SIGINT (Ctrl-C) it
    finishes the current chunk of steps, saves, and returns; a second signal does not wait for it.

    Args:
        config: the training.
        workdir: directory of the run; `cae_jax.runs.folder` lists its files.
        overwrite: start again where a run exists; it is kept until the new one has a checkpoint.
        start_from: run of the same network, whose weights a new run begins with.
        images: training and test images in place of the data set, see `cae_jax.data.of_arrays`.
        data_dir, verify_data: see `cae_jax.data.load_split`.
        chunk_steps: steps between two checks for signals, see `cae_jax.runs.epochs.Chunks`.
        backend: see `cae_jax.ops.backend.choose`; a run keeps its own unless another is named.
        on_epoch: called after each epoch with the history so far.

    Raises:
        UserError: unusable data or directory, a run of another config, a number not finite.
        Interrupted: a signal came before there was a model.
    """
    chunks = Chunks(chunk_steps)
    workdir = Path(workdir).expanduser()
    with Interruption() as interruption:
        where: Any = {"data_dir": data_dir, "verify_data": verify_data}
        config, split, chosen = prepare(config, workdir, backend, interruption, images, **where)
        model = _initial_model(config, start_from)
        interruption.check()
        with (
            open_run(workdir, config, overwrite=overwrite) as folder,
            Checkpoints(checkpoint_folder(workdir), folder.config, folder.check) as checkpoints,
        ):
            setup = _Setup.on_device(folder.config, model, chosen, split)
            del split  # the reader's arrays, which would stay in memory beside those of the device
            progress = resume(folder, checkpoints, setup.initial_state(), setup.steps)
            if start_from is not None and progress.saved_step is None:
                progress.save()  # whoever resumes the run need not name its origin
            stopped = _train(setup, progress, interruption, chunks, on_epoch)
            return FitResult(setup.autoencoder(progress), progress.rows, progress.step, stopped)


def prepare(
    config: TrainConfig,
    workdir: Path,
    backend: str,
    interruption: Interruption,
    images: tuple[np.ndarray, np.ndarray] | None,
    **where: Any,
) -> tuple[TrainConfig, data.Dataset, Backend]:
    """The resolved config, images and backend of a training; arguments as of `fit`.

    The first start compiles a kernel and prepares the data: at the same time where the shape of
    the images is known before they are read.
    """
    if images is None:
        config = data.located(config, data_dir=where["data_dir"])
    if images is None and known_shape(config) is not None:
        config = resolved(config)
        environment.check_memory(config)
        choosing = interruption.start(environment.choose_backend, workdir, config, backend)
        return config, data.load(config, **where), choosing.result()
    if images is None:
        split = data.load(config, **where)
    else:
        config = dataclasses.replace(config, data=ARRAYS, image_shape=None)
        split = data.of_arrays(config, images)
    config = resolved(config, split.image_shape)
    environment.check_memory(config)
    chosen = interruption.call(environment.choose_backend, workdir, config, backend)
    return config, split, chosen


def _initial_model(config: TrainConfig, start_from: str | Path | None) -> autoencoders.Model:
    """The model before the first step."""
    model = autoencoders.build(config, nnx.Rngs(params=make_keys(config.seed).init))
    if start_from is not None:
        source = load(start_from, backend="auto")
        if source.topology != model.topology:
            raise UserError(
                f"`start_from` {start_from} has the model {source.config.model} with features "
                f"{source.config.features}, and the config describes {config.model} with features "
                f"{config.features}; they must be equal"
            )
        nnx.update(model, nnx.state(source.model, nnx.Param))
    return model


class _Setup(NamedTuple):
    """A model, its backend, its images and what identifies them; all but that for `Trainer`."""

    config: TrainConfig
    model: autoencoders.Model
    backend: Backend
    train_images: np.ndarray | jax.Array
    test_images: np.ndarray | jax.Array
    digest: str

    @classmethod
    def on_device(
        cls, config: TrainConfig, model: autoencoders.Model, backend: Backend, split: data.Dataset
    ) -> "_Setup":
        """With the images on the device."""
        train, test = map(jax.device_put, split[:2])
        return cls(config, model, backend, train, test, split.digest)

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
    chunks: Chunks,
    on_epoch: Callable[[list[history.Row]], None] | None,
) -> int | None:
    """Runs the remaining epochs and writes the results, unless the run is finished.

    Returns:
        the number of a signal that ended the training early.
    """
    epochs = setup.config.epochs
    if len(progress.rows) == epochs and is_finished(progress.workdir, epochs):
        logger.info(
            f"{progress.workdir} is finished after {epochs} epochs; more epochs continue it"
        )
        return None
    try:
        _run(setup, progress, interruption, chunks, on_epoch)
    except Interrupted as stop:
        return save_at(stop, progress, interruption, setup.steps * epochs)
    except MovedError as moved:
        if moved.now is not None:
            progress.save_in(moved.now)
        raise
    return None


def _run(
    setup: _Setup,
    progress: Progress,
    interruption: Interruption,
    chunks: Chunks,
    on_epoch: Callable[[list[history.Row]], None] | None,
) -> None:
    interruption.check()
    folder, workdir = progress.folder, progress.workdir
    with folder.writing():
        environment.record(workdir, setup.backend, setup.digest)
        (workdir / "result.json").unlink(missing_ok=True)
        atomic.write_text(workdir / "summary.txt", layer_table(setup.model.topology) + "\n")
    logger.info(f"Backend {setup.backend.name}: {setup.backend.reason}")
    started = time.perf_counter()
    trainer = interruption.call(Trainer, *setup[:-1])
    compile_seconds = time.perf_counter() - started
    logger.info(f"Compiled in {compile_seconds:.1f}s for {device_name()}")
    run_epochs(progress, trainer, chunks, interruption, on_epoch)
    progress.checkpoints.wait()
    interruption.check()
    details = {"compile_seconds": compile_seconds, "backend": setup.backend.name}
    progress.wait_for_imports()  # also where no epoch was left
    from cae_jax.runs import results

    pictures = (trainer.validation.images, trainer.validation.inputs)
    originals, inputs = (np.asarray(scale(images[: results.PICTURES])) for images in pictures)
    autoencoder = setup.autoencoder(progress)
    with folder.writing():
        results.write(workdir, autoencoder, progress.rows, originals, inputs, details)
