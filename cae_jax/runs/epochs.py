"""Runs the epochs of a group in chunks of steps; a group of one model is an ordinary run."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from cae_jax.errors import UserError
from cae_jax.runs.history import Row
from cae_jax.runs.interruption import Interruption
from cae_jax.runs.journal import Journal
from cae_jax.training.step import TrainState
from cae_jax.training.trainer import Chunk, Trainer

logger = logging.getLogger(__name__)


class NotFiniteError(UserError):
    """All members of a group have a loss, gradient or parameter that is not finite.

    Attributes:
        step: the step since the start of training at which the last one became so.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Chunks:
    """Splits an epoch into chunks of steps, between which signals are checked.

    The chunk size does not affect the result.

    Args:
        steps: the size; None adapts it: it doubles after a chunk of less than 0.1 s, since a
            dispatch costs milliseconds, and halves after one of more than 1 s.
        begin: the first size to adapt.

    Raises:
        UserError: less than one.
    """

    def __init__(self, steps: int | None, begin: int = 67) -> None:
        if steps is not None and steps < 1:
            raise UserError(f"`chunk_steps` is {steps}; it takes a whole number of at least 1")
        self._steps, self._adapts = steps or begin, steps is None

    def between(self, first: int, last: int) -> Iterator[tuple[int, int]]:
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
    """The progress of a group.

    Attributes:
        state: after the last chunk of steps, on the device.
        epochs: number of epochs that are trained and evaluated.
    """

    state: TrainState
    epochs: int

    @property
    def step(self) -> int:
        return int(self.state.step)


class Hooks(NamedTuple):
    """Functions that `run_epochs` calls.

    Attributes:
        on_epoch: after each epoch, with the history of each member so far.
        on_chunk: after each chunk of steps, with the number of steps since the start of training.
    """

    on_epoch: Callable[[list[list[Row]]], None] | None = None
    on_chunk: Callable[[int], None] | None = None


class Session(Interruption):
    """A call of `fit` or `fit_population`, which handles signals while it lasts.

    Args:
        chunk_steps: see `Chunks`.
        hooks: for all epochs.
    """

    def __init__(self, chunk_steps: int | None, hooks: Hooks) -> None:
        super().__init__()
        self.chunks, self.hooks = Chunks(chunk_steps), hooks


def run_epochs(progress: Progress, trainer: Trainer, journal: Journal, session: Session) -> None:
    """Trains the remaining epochs.

    A first signal takes effect after the current chunk, or at the end of the epoch after its last
    chunk; a second one at once.

    Raises:
        Interrupted: on a signal; `progress` is that after the last chunk.
        NotFiniteError: no member is left that is finite.
        UserError: the directory was moved or removed, or a file cannot be written.
    """
    epochs = trainer.members[0].epochs
    with session.defer(1):
        for epoch in range(progress.epochs + 1, epochs + 1):
            rows = _run_epoch(progress, trainer, journal, epoch, session)
            with session.defer():
                journal.record(progress.state, rows)
                progress.epochs = epoch
                logger.info(f"Epoch {epoch}/{epochs} - {_line(rows)}")
            if session.hooks.on_epoch is not None:
                session.hooks.on_epoch([list(each) for each in journal.rows])
            session.check()


def _run_epoch(
    progress: Progress, trainer: Trainer, journal: Journal, epoch: int, session: Session
) -> list[Row | None]:
    """Trains the remaining steps of an epoch and evaluates.

    Returns:
        a row for each member, None for those that are stopped.
    """
    before, losses_MxS = (epoch - 1) * trainer.steps, trainer.losses(progress.state)
    first, started = progress.step - before, time.perf_counter()
    batches = trainer.order(epoch)
    # disable=None: silent where the output is no terminal
    with tqdm(total=trainer.steps, initial=first, unit="step", leave=False, disable=None) as bar:
        bar.set_description(f"Epoch {epoch}/{trainer.members[0].epochs}")
        for start, stop in session.chunks.between(first, trainer.steps):
            chunk = session.call(trainer.run, progress.state, batches, start, stop)
            losses_MxS = chunk.losses_MxS
            with session.defer():  # a member is stopped as a whole
                _keep_finite(trainer, journal, chunk, before, stop)
                progress.state = chunk.state
            if session.hooks.on_chunk is not None:
                session.hooks.on_chunk(progress.step)
            journal.folder.check()
            bar.update(stop - start)
            if stop < trainer.steps:
                session.check()
    seconds = (time.perf_counter() - started) / len(trainer.members)
    scores = session.call(trainer.validation.evaluate, progress.state.params)
    overflown = [k for k, score in enumerate(scores) if not math.isfinite(score.val_loss)]
    with session.defer():
        _stop(trainer, journal, dict.fromkeys(overflown, progress.step))
    trained = (trainer.steps - first) / trainer.steps * trainer.examples
    return [
        None
        if k in journal.stopped
        else Row(
            epoch=epoch,
            step=progress.step,
            loss=trainer.epoch_loss(losses_S),
            **score._asdict(),
            skipped=int((~np.isfinite(losses_S)).sum()),
            epoch_seconds=seconds,
            images_per_second=trained / seconds,
        )
        for k, (score, losses_S) in enumerate(zip(scores, losses_MxS, strict=True))
    ]


def _keep_finite(trainer: Trainer, journal: Journal, chunk: Chunk, before: int, stop: int) -> None:
    """Stops the members with a loss, gradient or parameter that is not finite after a chunk.

    With ``on_nan="skip"`` the parameters stay finite until `max_skips` is exceeded.
    """
    finite_MxS = np.isfinite(chunk.losses_MxS[:, :stop])
    skips = trainer.members[0].on_nan == "skip"
    good_M = chunk.finite_M & (finite_MxS.all(axis=1) | skips)
    steps = {}
    for k in np.flatnonzero(~good_M).tolist():
        found = [] if skips else np.flatnonzero(~finite_MxS[k])
        steps[k] = before + (int(found[0]) + 1 if len(found) else stop)
    _stop(trainer, journal, steps)


def _stop(trainer: Trainer, journal: Journal, steps: dict[int, int]) -> None:
    """Stops members; their arrays are ignored afterwards.

    Args:
        trainer, journal: of the group.
        steps: index of a member to the step at which it became not finite.

    Raises:
        NotFiniteError: no member is left.
    """
    for k in sorted(steps.keys() - journal.stopped.keys()):
        journal.stop(k, steps[k])
    if len(journal.stopped) < len(trainer.members):
        return
    config, step, advice = trainer.members[0], max(journal.stopped.values()), ""
    problem = f"by step {step} more than {config.max_skips} in a row have"
    if config.on_nan == "stop":
        problem, advice = f"step {step} is the first to have", ", or set `on_nan='skip'`"
    kept, where = "", "with `overwrite=True`"
    if journal.saved_step is not None:
        workdir = journal.folder.path
        kept = f" {workdir} keeps its last good checkpoint, step {journal.saved_step};"
        where = "in another `workdir`"
    raise NotFiniteError(
        f"epoch {(step - 1) // trainer.steps + 1}: {problem} a loss or gradient that is not "
        f"finite;{kept} lower `learning_rate`, set `clip_norm`{advice}, and train {where}",
        step,
    )


def _line(rows: list[Row | None]) -> str:
    """What an epoch reached, for the log: of one member, or of the best, median and worst."""
    good = [row for row in rows if row is not None]
    seconds = sum(row.epoch_seconds for row in good) / len(good) * len(rows)
    line = f"{seconds:.1f}s - {good[0].images_per_second:.0f} images/s"
    if len(rows) > 1:
        losses = [row.val_loss for row in good]
        stopped = len(rows) - len(good)
        return (
            f"{line} - val_loss: best {min(losses):.4f}, median {np.median(losses):.4f}, worst "
            f"{max(losses):.4f}" + (f" - stopped: {stopped}" if stopped else "")
        )
    [row] = good
    skipped = f" - skipped: {row.skipped}" if row.skipped else ""
    return (
        f"{line} - loss: {row.loss:.4f} - val_loss: {row.val_loss:.4f} - "
        f"val_psnr: {row.val_psnr:.2f}{skipped}"
    )
