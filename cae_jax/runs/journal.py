"""Writes what a training reaches: checkpoints, history, TensorBoard's events and results.

A `Journal` belongs to a run; the journal of a group of several models is in
`cae_jax.runs.population`.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import jax
import numpy as np

from cae_jax import atomic
from cae_jax.config import TrainConfig, to_shared
from cae_jax.errors import UserError
from cae_jax.models.autoencoders import scale
from cae_jax.runs import history, tables
from cae_jax.runs.checkpoints import Checkpoint, Checkpoints
from cae_jax.runs.folder import OpenFolder, checkpoint_folder, is_finished
from cae_jax.runs.history import Row
from cae_jax.runs.job import Job
from cae_jax.training.step import TrainState
from cae_jax.training.trainer import Trainer, device_name

logger = logging.getLogger(__name__)
_PICTURES = 10  # validation images in the figure
_PACKAGES = ("cae-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Journal:
    """The journal of a run; a context manager, which waits for the last save.

    Args:
        folder: directory of the run or population, open.
        config: of the run, or of a member of the group.
        place: directory of the checkpoints, if it is another one.
        least_seconds: between two saves at ends of epochs, apart from the last epoch; the most that
            a killed run loses.

    Attributes:
        folder, config: as given.
        rows: the history of each member of the group.
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
        self.folder, self.config = folder, config
        self.rows: list[list[Row]] = [[]]
        self.stopped: dict[int, int] = {}
        self.saved_step: int | None = None
        self._loss_is_saved = False
        self._checkpoints = Checkpoints(
            checkpoint_folder(place or folder.path), config, folder.check, folder.path
        )
        self._least_seconds, self._saved_at = least_seconds, -math.inf
        self._events: history.Events | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._events is not None:
            self._events.close()
        self._checkpoints.__exit__(*exception)

    def resume(self, like: Callable[[], TrainState], steps: int) -> TrainState | None:
        """Restores the newest intact checkpoint and its history; None if there is none.

        Args:
            like: returns a state of the same structure.
            steps: steps per epoch.

        Raises:
            UserError: all checkpoints are damaged, or the history does not fit them.
        """
        run = self.folder.path
        newest = newest_intact(self.folder, self._checkpoints)
        epochs, kept, state = 0, [], None
        if newest is not None:
            state, epochs = self._restore(newest, like), epochs_before(newest, steps)
            kept = self._checkpoints.rows(newest.step)
            if kept is None:  # a checkpoint of an earlier version
                kept = history.read(run / history.NAME)
        elif (run / "result.json").exists():
            raise UserError(
                f"{run} is finished but its checkpoints are gone; restore them from a copy, or "
                f"remove {run} and train again"
            )
        self.rows = [kept[:epochs]]
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
        with self.folder.reading():
            return self._checkpoints.restore(newest.step, like())

    def is_finished(self) -> bool:
        """Whether the run has all of its epochs and results."""
        epochs = self.config.epochs
        return len(self.rows[0]) == epochs and is_finished(self.folder.path, epochs)

    def report(self) -> list[Any] | None:
        """What the journals of other processes follow, see `Follower`."""
        return [self.is_finished(), self.saved_step, self.rows[0]]

    def follow(self, told: list[Any]) -> None:
        """Does nothing: this process has what it reported."""

    def begin(self, job: Job) -> None:
        """Writes the first files of a run."""
        with self.folder.writing():
            job.describe(self.folder.path)
            (self.folder.path / "result.json").unlink(missing_ok=True)

    def record(self, state: TrainState, rows: Sequence[Row | None]) -> None:
        """Adds the rows of an epoch, None for stopped members; saves unless it just has."""
        good = [row for row in rows if row is not None]
        self._add(rows)
        last = good[0].epoch == self.config.epochs
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
            self._events = history.Events(run / "tensorboard", len(self.rows[0]) + 1)
        with self.folder.writing():
            for row in rows:
                self._events.add(row)
            self.rows[0] += rows
            history.replace(run / history.NAME, self.rows[0])

    def save(self, state: TrainState, val_loss: float | None = None) -> None:
        """Starts to save the state, with its validation loss if known, unless it is saved."""
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
        """Records the step at which a member became non-finite; its checkpoints stay."""
        self.stopped[k] = step

    def finish(
        self, job: Job, trainer: Trainer, state: TrainState, check: Callable[[], None], k: int = 0
    ) -> None:
        """Writes the results of a run that has all of its epochs.

        Args:
            job: of the training.
            trainer: of the group of the run.
            state: after the last epoch.
            check: raises `Interrupted` after a signal; called between the members of a group.
            k: index of the run in its group.
        """
        from cae_jax import figures  # Matplotlib takes a second to import

        run, rows, config = self.folder.path, self.rows[0], self.config
        first = trainer.validation.first(_PICTURES, k)
        originals, inputs = (np.asarray(scale(each)) for each in first)
        autoencoder = job.autoencoder.with_params(config, jax.device_put(state.params)).of_pixels
        noisy = {} if config.noise == "none" else {"noisy": inputs}
        images = {"original": originals, **noisy, "reconstruction": autoencoder.reconstruct(inputs)}
        columns = {name: [getattr(row, name) for row in rows] for name in Row._fields}
        versions = {}
        for name in _PACKAGES:
            with contextlib.suppress(metadata.PackageNotFoundError):  # a clone, not installed
                versions[name] = metadata.version(name)
        result = {
            "final": rows[-1]._asdict(),
            "best": min(rows, key=lambda row: row.val_loss)._asdict(),
            "epoch_seconds_median": float(np.median(columns["epoch_seconds"])),
            "compile_seconds": job.compile_seconds,
            "backend": job.backend.name,
            "device": device_name(),
            "versions": versions,
            "config": to_shared(config),
        }
        with self.folder.writing():
            if autoencoder.topology.quantised:
                tables.write(run / tables.NAME, autoencoder)
            figures.save_rows(run / "reconstructions.png", images)
            curves = {run.absolute().name: columns}
            figures.save_curves(run / "history.png", curves, loss=config.loss)
            atomic.write_json(run / "result.json", result)  # last: it marks the run as finished


class _Elsewhere(NamedTuple):
    """The directory of a run that another process has open."""

    path: Path

    def check(self) -> None:
        pass


class Follower(Journal):
    """The journal of a process that trains with process 0; writes nothing.

    Args:
        run: directory of the run in process 0.
        config: of the run.
    """

    def __init__(self, run: Path, config: TrainConfig) -> None:
        self.folder, self.config = cast(Any, _Elsewhere(run)), config
        self.rows, self.stopped, self.saved_step = [[]], {}, None
        self._finished, self._least_seconds, self._saved_at = False, math.inf, math.inf

    def resume(self, like: Callable[[], TrainState], steps: int) -> None:
        """Returns None: the state is that of process 0."""

    def report(self) -> None:
        """Returns None: there is nothing to follow."""

    def follow(self, told: list[Any]) -> None:
        """Takes over what `report` of process 0 returned."""
        self._finished, self.saved_step, rows = told
        self.rows = [[Row(*row) for row in rows]]

    def is_finished(self) -> bool:
        return self._finished

    def begin(self, job: Job) -> None:
        pass

    def save(self, state: TrainState, val_loss: float | None = None) -> None:
        self.saved_step = int(state.step)

    def wait(self) -> None:
        pass

    def _write_rows(self, rows: Sequence[Row]) -> None:
        self.rows[0] += rows

    def finish(self, *_: Any, **__: Any) -> None:
        pass


def newest_intact(folder: OpenFolder, checkpoints: Checkpoints) -> Checkpoint | None:
    """The newest intact checkpoint, if there is any; damaged ones are set aside.

    Raises:
        UserError: all are damaged.
    """
    checkpoints.clean()
    with folder.reading():
        newest, damage = checkpoints.find()
    for step, problem in damage.items():
        assert newest is not None
        with folder.writing():
            moved = checkpoints.set_aside(step, folder.path / "damaged")
        logger.warning("%s: moved to %s, resuming after step %d", problem, moved, newest.step)
    return newest


def epochs_before(checkpoint: Checkpoint, steps: int) -> int:
    """The number of evaluated epochs, of `steps` steps each, that a checkpoint follows."""
    # Without a loss, at least the last epoch has yet to be evaluated.
    return max(checkpoint.step - (checkpoint.val_loss is None), 0) // steps
