"""Runs the epochs of a training in chunks of steps; records, checkpoints and resumes them."""

import contextlib
import dataclasses
import importlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from cae_jax.errors import UserError
from cae_jax.runs import history, tensorboard
from cae_jax.runs.checkpoints import Checkpoint, Checkpoints
from cae_jax.runs.folder import OpenFolder, checkpoint_folder
from cae_jax.runs.interruption import Interrupted, Interruption
from cae_jax.training.step import TrainState
from cae_jax.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Chunks:
    """How many steps go to the device between two checks for signals; the result does not depend.

    Args:
        steps: the number; None adapts it: it doubles after a chunk of less than 0.1 s, since to
            dispatch one costs milliseconds, and halves after one of more than 1 s.
        begin: the number to adapt.

    Raises:
        UserError: less than one.
    """

    def __init__(self, steps: int | None, begin: int = 67) -> None:
        if steps is not None and steps < 1:
            raise UserError(f"`chunk_steps` is {steps}; it takes a whole number of at least 1")
        self._steps, self._adapts = steps or begin, steps is None

    def of(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The bounds of the chunks of ``first <= step < last``, one after the other."""
        while first < last:
            stop, started = min(first + self._steps, last), time.perf_counter()
            yield first, stop
            seconds = time.perf_counter() - started
            if self._adapts and seconds < 0.1 and stop - first == self._steps:
                self._steps *= 2
            elif self._adapts and seconds > 1:
                self._steps = max(1, self._steps // 2)
            first = stop


@dataclasses.dataclass
class Progress:
    """The progress of a run.

    Attributes:
        folder: directory of the run, open.
        checkpoints: of the run.
        state: after the last chunk of steps, on the device.
        rows: the history, one row per epoch.
        saved_step: step of the newest checkpoint; None if there is none.
        imports: what saves and draws is imported when it is done.
    """

    folder: OpenFolder
    checkpoints: Checkpoints
    state: TrainState
    rows: list[history.Row]
    saved_step: int | None
    imports: Future[None] | None = None

    @property
    def workdir(self) -> Path:
        return self.folder.path

    @property
    def step(self) -> int:
        return int(self.state.step)

    def save(self, val_loss: float | None = None) -> None:
        """Starts to save the state, unless it is saved already."""
        self.wait_for_imports()
        if self.step != self.saved_step:
            self.checkpoints.save(self.state, val_loss, self.rows)
            self.saved_step = self.step

    def wait_for_imports(self) -> None:
        """Two threads that import the same packages at once may see them half initialised."""
        if self.imports is not None:
            self.imports.result()

    def save_in(self, workdir: Path) -> None:
        """Saves the state in the directory that the run was moved to."""
        with contextlib.suppress(UserError):  # of a save at the old path
            self.checkpoints.wait()
        self.checkpoints.folder = checkpoint_folder(workdir.absolute())
        self.checkpoints.check = lambda: None
        self.saved_step = None
        self.save()
        self.checkpoints.wait()


def resume(
    folder: OpenFolder, checkpoints: Checkpoints, initial_state: TrainState, steps: int
) -> Progress:
    """Restores the newest intact checkpoint, or starts before the first step.

    Args:
        folder: directory of the run, open.
        checkpoints: of the run.
        initial_state: the state before the first step.
        steps: steps per epoch.

    Raises:
        UserError: all checkpoints are damaged, or the history does not match them.
    """
    newest = newest_intact(folder, checkpoints)
    state, epochs, saved_step, kept = initial_state, 0, None, []
    if newest is not None:
        state, saved_step = checkpoints.restore(newest.step, like=state), newest.step
        kept = checkpoints.rows(newest.step)
        epochs = epochs_before(newest, steps)
    with folder.writing():
        rows = _read_rows(folder.path, epochs, kept)
    return Progress(folder, checkpoints, state, rows, saved_step)


def newest_intact(folder: OpenFolder, checkpoints: Checkpoints) -> Checkpoint | None:
    """The newest intact checkpoint, if there is any; damaged ones are set aside.

    Raises:
        UserError: all are damaged.
    """
    checkpoints.clean()
    newest, damage = checkpoints.find()
    for step, problem in damage.items():
        assert newest is not None
        with folder.writing():
            moved = checkpoints.set_aside(step, folder.path / "damaged")
        logger.warning("%s: moved to %s, resuming after step %d", problem, moved, newest.step)
    return newest


def epochs_before(checkpoint: Checkpoint, steps: int) -> int:
    """Epochs of `steps` steps that a checkpoint follows, evaluated ones."""
    # Without a loss, the last epoch has yet to be evaluated at least.
    known = checkpoint.val_loss is not None
    return (checkpoint.step if known else max(checkpoint.step - 1, 0)) // steps


def _read_rows(workdir: Path, epochs: int, kept: list[history.Row] | None) -> list[history.Row]:
    """Reads the history of the first `epochs` epochs; drops later rows, without checkpoint."""
    path = workdir / "history.csv"
    rows = [row for row in history.checked(path, kept) if row.epoch <= epochs]
    if [row.epoch for row in rows] != list(range(1, epochs + 1)):
        raise UserError(
            f"{path} has epochs {[row.epoch for row in rows]} and the newest checkpoint follows "
            f"epoch {epochs}; restore the file from a copy, or train in another `workdir`"
        )
    if not epochs and (workdir / "result.json").exists():
        raise UserError(
            f"{workdir} is finished but its checkpoints are gone; restore them from a copy, or "
            "start again with `overwrite=True`"
        )
    history.rewrite(path, rows)
    return rows


def run_epochs(
    progress: Progress,
    trainer: Trainer,
    chunks: Chunks,
    interruption: Interruption,
    on_epoch: Callable[[list[history.Row]], None] | None = None,
) -> None:
    """Trains the remaining epochs.

    A first signal takes effect after the current chunk, or at the end of the epoch after its last
    chunk; a second one at once.

    Raises:
        Interrupted: on a signal; `progress` is that after the last chunk.
        MovedError: the directory was moved or removed; `progress` likewise.
        UserError: a loss, gradient or parameter is not finite, or a file cannot be written.
    """
    first = len(progress.rows) + 1
    progress.imports = interruption.start(_import_writers)
    if progress.saved_step is not None:
        logger.info("%s resumes after step %d", progress.workdir, progress.saved_step)
    writer = tensorboard.Writer(progress.workdir / "tensorboard", first)
    with contextlib.closing(writer), interruption.patience(1):
        for epoch in range(first, trainer.config.epochs + 1):
            row = _run_epoch(progress, trainer, epoch, chunks, interruption)
            progress.wait_for_imports()
            with interruption.patience():
                # The checkpoint last: it must not be ahead of the history.
                with progress.folder.writing():
                    history.append(progress.workdir / "history.csv", row)
                    progress.rows.append(row)
                    writer.add_row(row)
                progress.save(row.val_loss)
                _log_row(row, trainer.config.epochs)
            if on_epoch is not None:
                on_epoch(list(progress.rows))
            interruption.check()


def save_at(stop: Interrupted, progress: Any, interruption: Interruption, total: int) -> int:
    """Saves what an interrupted training has reached, and says so.

    Args:
        stop: the signal.
        progress: a `Progress`, or that of a population.
        interruption: ignores further signals from here on.
        total: steps of the whole training.

    Returns:
        the number of the signal.
    """
    interruption.ignore()
    if progress.step > 0:
        progress.save()
    progress.checkpoints.wait()
    workdir, saved = progress.folder.path, progress.step == progress.saved_step
    kept = f", which {workdir} keeps" if saved else ""
    logger.info(f"{stop} after step {progress.step} of {total}{kept}")
    return stop.signal


def _import_writers() -> None:
    """Imports what saves and draws, which takes a second, while the first epoch runs."""
    for name in ("cae_jax.runs.orbax_io", "tensorboardX", "cae_jax.runs.results"):
        importlib.import_module(name)


def _run_epoch(
    progress: Progress,
    trainer: Trainer,
    epoch: int,
    chunks: Chunks,
    interruption: Interruption,
) -> history.Row:
    """Trains the remaining steps of an epoch and evaluates."""
    first = progress.step - (epoch - 1) * trainer.steps
    losses_S = np.array(progress.state.losses_S)
    started = time.perf_counter()
    batches_SxB = trainer.order(epoch)
    # disable=None: silent where the output is no terminal
    with tqdm(total=trainer.steps, initial=first, unit="step", leave=False, disable=None) as bar:
        bar.set_description(f"Epoch {epoch}/{trainer.config.epochs}")
        for start, stop in chunks.of(first, trainer.steps):
            progress.state, losses_S, finite = interruption.call(
                trainer.run, progress.state, batches_SxB, start, stop
            )
            _check_finite(progress, trainer, epoch, losses_S[:stop], finite)
            progress.folder.check()
            bar.update(stop - start)
            if stop < trainer.steps:
                interruption.check()
    seconds = time.perf_counter() - started
    val_loss, val_psnr = interruption.call(trainer.validation.evaluate, progress.state.params)
    trained = (trainer.steps - first) / trainer.steps * trainer.examples
    return history.Row(
        epoch=epoch,
        step=progress.step,
        loss=trainer.epoch_loss(losses_S),
        val_loss=val_loss,
        val_psnr=val_psnr,
        val_psnr_input=trainer.validation.psnr_input,
        skipped=int((~np.isfinite(losses_S)).sum()),
        epoch_seconds=seconds,
        images_per_second=trained / seconds,
    )


def _check_finite(
    progress: Progress, trainer: Trainer, epoch: int, losses: np.ndarray, finite_params: bool
) -> None:
    """Stops the run at a loss, gradient or parameter that is not finite.

    With ``on_nan="skip"`` the parameters stay finite until `max_skips` is exceeded.
    """
    config, finite = trainer.config, np.isfinite(losses)
    if finite_params and (finite.all() or config.on_nan == "skip"):
        return
    step, advice = (epoch - 1) * trainer.steps + np.flatnonzero([True, *finite])[-1] + 1, ""
    problem = f"by step {progress.step} more than {config.max_skips} in a row have"
    if config.on_nan == "stop":
        problem, advice = f"step {step} is the first to have", ", or set `on_nan='skip'`"
    kept, where = "", "with `overwrite=True`"
    if progress.saved_step is not None:
        kept = f" {progress.workdir} keeps its last good checkpoint, step {progress.saved_step};"
        where = "in another `workdir`"
    raise UserError(
        f"epoch {epoch}: {problem} a loss or gradient that is not finite;{kept} lower "
        f"`learning_rate`, set `clip_norm`{advice}, and train {where}"
    )


def _log_row(row: history.Row, epochs: int) -> None:
    skipped = f" - skipped: {row.skipped}" if row.skipped else ""
    logger.info(
        f"Epoch {row.epoch}/{epochs} - {row.epoch_seconds:.1f}s - "
        f"{row.images_per_second:.0f} images/s - loss: {row.loss:.4f} - "
        f"val_loss: {row.val_loss:.4f} - val_psnr: {row.val_psnr:.2f}{skipped}"
    )
