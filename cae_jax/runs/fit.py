"""`fit`: a whole training run, from the config to the files that it leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from cae_jax import atomic
from cae_jax.config import TrainConfig
from cae_jax.data import store
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.models.inference import Autoencoder
from cae_jax.models.summary import layer_table
from cae_jax.ops import backend
from cae_jax.runs import history, results
from cae_jax.runs.checkpoints import open_checkpoints
from cae_jax.runs.epochs import Training, resume, run_epochs
from cae_jax.runs.folder import checkpoint_folder, open_run
from cae_jax.runs.interruption import Interrupted, Interruption
from cae_jax.training.step import make_keys
from cae_jax.training.trainer import Programs


class FitResult(NamedTuple):
    """What `fit` gives.

    Attributes:
        autoencoder: the model after the last step.
        history: one row an epoch, those before a resumption included.
        interrupted: number of the signal that has ended the training early; None if none did.
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
    method: str = "auto",
    on_epoch: Callable[[list[history.Row]], None] | None = None,
) -> FitResult:
    """Trains an autoencoder; called again with the same folder, it resumes.

    SIGTERM and SIGINT, which is Ctrl-C or a notebook's interrupt, let it finish the chunk of steps
    at hand, save, and return; a second one does not wait for the chunk.

    Args:
        config: what to train.
        workdir: folder of the run; `cae_jax.runs.folder` lists its files.
        overwrite: start anew where a run exists.
        data_dir: see `cae_jax.data.store.load`.
        archives: see `cae_jax.data.store.load`.
        chunk_steps: steps between two looks for signals and two updates of the progress bar;
            without effect on the result.
        method: how the network is computed, see `cae_jax.ops.backend`. The methods agree up to
            rounding; a run may be resumed by another one.
        on_epoch: called after each epoch with the history so far, for a live picture of it, say;
            its checkpoint is under way by then. What it raises ends the training.

    Raises:
        UserError: data or folder cannot be used, the folder holds a run of another config or is
            trained in by another process, or a number became infinite or not-a-number.
        Interrupted: a signal came before there was a model.
    """
    if chunk_steps < 1:
        raise UserError(f"chunk_steps is {chunk_steps}; it takes a whole number of at least 1")
    workdir = Path(workdir)
    with Interruption() as interruption:
        choice = backend.choose(config, method)
        images = load_images(config, data_dir, archives)
        interruption.check()
        with open_run(workdir, config, overwrite=overwrite):
            init_key = make_keys(config.seed).init
            model = autoencoders.build(config, nnx.Rngs(params=init_key), choice.method)
            atomic.write_text(workdir / "summary.txt", layer_table(model) + "\n")
            programs = Programs(config, model, *images)
            with open_checkpoints(checkpoint_folder(workdir), config) as checkpoints:
                training = resume(workdir, programs, checkpoints)
                return _finish(training, model, choice, interruption, chunk_steps, on_epoch)


def _finish(
    training: Training,
    model: autoencoders.Model,
    choice: backend.Choice,
    interruption: Interruption,
    chunk_steps: int,
    on_epoch: Callable[[list[history.Row]], None] | None,
) -> FitResult:
    """Does what is left of a run, as far as no signal interrupts it."""
    workdir, programs = training.workdir, training.programs
    interrupted, compile_seconds = None, None
    try:
        interruption.check()
        if not training.finished:
            (workdir / "result.json").unlink(missing_ok=True)
            print(f"Method {choice.method}: {choice.reason}")
            compile_seconds = interruption.call(programs.compile)
            run_epochs(training, chunk_steps, interruption, on_epoch)
            training.checkpoints.wait()
        interruption.check()
        autoencoder = _autoencoder(training, model)
        if (workdir / "result.json").exists():
            epochs = len(training.rows)
            print(f"{workdir} is finished after {epochs} epochs; --overwrite starts anew")
        else:
            facts = {"compile_seconds": compile_seconds, "method": choice.method}
            results.write(workdir, autoencoder, training.rows, programs, facts)
    except Interrupted as stop:
        interruption.ignore()
        interrupted = stop.signal
        training.save()
        training.checkpoints.wait()
        autoencoder = _autoencoder(training, model)
        step = int(training.state.step)
        kept = f", which {workdir} keeps" if step == training.saved_step else ""
        print(f"{stop} after step {step} of {programs.steps * programs.config.epochs}{kept}")
    return FitResult(autoencoder, training.rows, interrupted)


def _autoencoder(training: Training, model: autoencoders.Model) -> Autoencoder:
    nnx.update(model, jax.device_put(training.state.params))
    return Autoencoder(training.programs.config, model)


def load_images(
    config: TrainConfig, data_dir: str | Path | None, archives: str | Path | None
) -> tuple[np.ndarray, np.ndarray]:
    train_images, test_images = (
        store.load(config.dataset, split, data_dir=data_dir, archives=archives)[0][:examples]
        for split, examples in (("train", config.train_examples), ("test", config.test_examples))
    )
    if config.batch_size > len(train_images):
        raise UserError(
            f"batch_size is {config.batch_size}; it takes at most the {len(train_images)} images "
            f"of {config.dataset}"
        )
    return train_images, test_images
