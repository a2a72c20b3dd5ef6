"""Writes what a training reaches: checkpoints, history, TensorBoard's events and results.

A `Journal` is that of a run, in the directory of the run; that of a group of several models is in
`cae_jax.runs.population`.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.models.autoencoders import scale
from cae_jax.runs import history, tensorboard
from cae_jax.runs.checkpoints import Checkpoint, Checkpoints
from cae_jax.runs.folder import OpenFolder, checkpoint_folder, is_finished
from cae_jax.runs.history import Row
from cae_jax.runs.job import Job
from cae_jax.training.step import TrainState
from cae_jax.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Journal:
    """The journal of a run; a context manager, which waits for the last save.

    Args:
        folder: directory of the run, open; or that of its population.
        config: of the run, or of one of the members of the group.
        place: directory that has the checkpoints, if it is another one.
        least_seconds: between two saves at ends of epochs, apart from the last epoch; a run that is
            killed loses as much.

    Attributes:
        folder: as given.
        rows: the history of each member of the group; here of the run alone.
        stopped: index of a member to the step at which it became not finite.
        saved_step: step of the newest checkpoint; None if there is none.
    """

    def __init__(
        self,
        folder: OpenFolder,
        config: TrainConfig,
        place: Path | None = None,
        least_seconds: float = 0,
    ) -> None:
        self.folder, self._config = folder, config
        self.rows: list[list[Row]] = [[]]
        self.stopped: dict[int, int] = {}
        self.saved_step: int | None = None
        self._loss_is_saved = False
        self._checkpoints = Checkpoints(
            checkpoint_folder(place or folder.path), config, folder.check, folder.path
        )
        self._least_seconds, self._saved_at = least_seconds, -math.inf
        self._events: tensorboard.Writer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._events is not None:
            self._events.close()
        self._checkpoints.__exit__(*exception)

    def resume(self, like: Callable[[], TrainState], steps: int) -> TrainState | None:
        """Restores the newest intact checkpoint and its history; None if there is none.

        Args:
            like: gives a state of the same structure.
            steps: steps per epoch.

        Raises:
            UserError: all checkpoints are damaged, or the history does not fit them.
        """
        run = self.folder.path
        newest = newest_intact(self.folder, self._checkpoints)
        epochs, kept, state = 0, None, None
        if newest is not None:
            state = self._restore(newest, like)
            epochs, kept = epochs_before(newest, steps), self._checkpoints.rows(newest.step)
        elif (run / "result.json").exists():
            raise UserError(
                f"{run} is finished but its checkpoints are gone; restore them from a copy, or "
                "start again with `overwrite=True`"
            )
        if kept is None and epochs:  # a checkpoint of an earlier version has no copy
            kept = history.read(run / history.NAME)
        self.rows = [(kept or [])[:epochs]]
        there = [row.epoch for row in self.rows[0]]
        if there != list(range(1, epochs + 1)):
            raise UserError(
                f"{run / history.NAME} has epochs {there} and the newest checkpoint follows epoch "
                f"{epochs}; restore the file from a copy, or train in another `workdir`"
            )
        with self.folder.writing():
            history.replace(run / history.NAME, self.rows[0])
        return state

    def _restore(self, newest: Checkpoint, like: Callable[[], TrainState]) -> TrainState:
        self.saved_step, self._loss_is_saved = newest.step, newest.val_loss is not None
        return self._checkpoints.restore(newest.step, like())

    def is_finished(self) -> bool:
        """Whether the run has all of its epochs and results."""
        epochs = self._config.epochs
        return len(self.rows[0]) == epochs and is_finished(self.folder.path, epochs)

    def begin(self, job: Job) -> None:
        """Writes the files that a run has from its beginning."""
        with self.folder.writing():
            job.describe(self.folder.path)
            (self.folder.path / "result.json").unlink(missing_ok=True)

    def record(self, state: TrainState, rows: Sequence[Row | None]) -> None:
        """Adds the rows of an epoch to the histories; saves, unless the last save was just now.

        Args:
            state: after the epoch.
            rows: one for each member, None for those that are stopped.
        """
        good = [row for row in rows if row is not None]
        self._add(rows)
        last = good[0].epoch == self._config.epochs
        if last or time.monotonic() >= self._saved_at + self._least_seconds:
            self.save(state, float(np.median([row.val_loss for row in good])))
            self._saved_at = time.monotonic()

    def restate(self, state: TrainState, rows: list[Row]) -> None:
        """Writes the history and the checkpoint of a run that was trained in a group."""
        self._checkpoints.clean()  # what a killed process left of an earlier attempt
        self._write_rows(rows)
        ended = bool(rows) and rows[-1].step == int(state.step)
        self.save(state, rows[-1].val_loss if ended else None)
        self.wait()

    def _add(self, rows: Sequence[Row | None]) -> None:
        self._write_rows([row for row in rows if row is not None])

    def _write_rows(self, rows: Sequence[Row]) -> None:
        """Adds rows to the history and to TensorBoard's events."""
        run = self.folder.path
        if self._events is None:
            self._events = tensorboard.Writer(run / "tensorboard", len(self.rows[0]) + 1)
        with self.folder.writing():
            for row in rows:
                scalars = {name: getattr(row, name) for name in tensorboard.SCALARS}
                self._events.add(row.epoch, scalars)
            self.rows[0] += rows
            history.replace(run / history.NAME, self.rows[0])

    def save(self, state: TrainState, val_loss: float | None = None) -> None:
        """Starts to save the state, unless it is saved already, with the loss if there is one."""
        step = int(state.step)
        if step == self.saved_step and (val_loss is None or self._loss_is_saved):
            return
        rows = [row for rows in self.rows for row in rows]
        self._checkpoints.save(self._to_save(state), val_loss, rows)
        self.saved_step, self._loss_is_saved = step, val_loss is not None

    def _to_save(self, state: TrainState) -> TrainState:
        return state

    def wait(self) -> None:
        """Waits for the current save; raises a `UserError` if it failed."""
        self._checkpoints.wait()

    def stop(self, k: int, step: int) -> None:
        """Notes the step at which the run became not finite; its checkpoints stay."""
        self.stopped[k] = step

    def finish(
        self,
        job: Job,
        trainer: Trainer,
        state: TrainState,
        details: dict[str, Any],
        check: Callable[[], None] = lambda: None,
        k: int = 0,
    ) -> None:
        """Writes the results of a run that has all of its epochs.

        Args:
            job: of the training.
            trainer: of the group of the run.
            state: after the last epoch.
            details: further entries of ``result.json``.
            check: see `GroupJournal.finish`.
            k: index of the run in its group.
        """
        from cae_jax.runs import results  # Matplotlib takes a second to import

        check()
        images = trainer.validation.images, trainer.validation.inputs(k)
        originals, inputs = (np.asarray(scale(each[: results.PICTURES])) for each in images)
        autoencoder = job.autoencoder.with_params(self._config, jax.device_put(state.params))
        with self.folder.writing():
            results.write(self.folder.path, autoencoder, self.rows[0], originals, inputs, details)


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
