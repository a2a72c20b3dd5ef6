"""Runs the epochs of a group in chunks of steps; a group of one model is an ordinary run."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from cae_jax.errors import UserError
from cae_jax.ops import settings
from cae_jax.runs.history import Row
from cae_jax.runs.interruption import Interrupted, Interruption, Result
from cae_jax.runs.journal import Journal
from cae_jax.runs.peers import Peers, join
from cae_jax.training.step import TrainState
from cae_jax.training.trainer import Chunk, Trainer

logger = logging.getLogger(__name__)


class NotFiniteError(UserError):
    """All members of a group have a loss, gradient or parameter that is not finite."""


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

    def between(
        self, first: int, last: int, agree: Callable[[int, int], int] = lambda _, stop: stop
    ) -> Iterator[tuple[int, int]]:
        """The bounds of the chunks of ``first <= step < last``, one after the other.

        ``agree(start, stop)`` returns the end of a chunk for which this process proposes `stop`.
        """
        while first < last:
            stop, started = agree(first, min(first + self._steps, last)), time.perf_counter()
            yield first, stop
            seconds = time.perf_counter() - started
            if self._adapts and seconds < 0.1 and stop - first == self._steps:
                self._steps *= 2
            elif self._adapts and seconds > 1:
                self._steps = max(1, self._steps // 2)
            first = stop


@dataclasses.dataclass
class Progress:
    """The state of a group after its last chunk of steps, on the device."""

    state: TrainState

    @property
    def step(self) -> int:
        return int(self.state.step)


class Session(Interruption):
    """A call of `fit` or `fit_population`, which handles signals while it lasts.

    Args:
        chunk_steps: see `Chunks`.
        on_epoch: called after each epoch with the history of the first member so far.
        on_chunk: called after each chunk of steps with the steps since the start of training.
        peers: the processes that train together; each signal to one of them is for all.
    """

    def __init__(
        self,
        chunk_steps: int | None,
        on_epoch: Callable[[list[Row]], None] | None = None,
        on_chunk: Callable[[int], None] | None = None,
        peers: Peers | None = None,
    ) -> None:
        super().__init__()
        self.peers, self._agreed, self._together = peers or join(), 0, False
        self.chunks = Chunks(chunk_steps)
        self.on_epoch, self.on_chunk = on_epoch, on_chunk

    def agree(self, step: int, stop: int) -> int:
        """The end of the chunk that all processes begin; raises `Interrupted` in all or in none."""
        if self.peers.count > 1:
            proposed = self.peers.exchange(f"step {step}", [self.received, stop])
            self._agreed = next((number for number, _ in proposed if number), 0)
            self.check()
            stop = proposed[0][1]
        return stop

    def check(self) -> None:
        """Raises `Interrupted` after a signal, while processes are together after `agree`."""
        if self._agreed:
            raise Interrupted(self._agreed)
        if not self._together:
            super().check()

    @property
    def is_for_all(self) -> bool:
        """Whether all processes act on the signal that this one acts on."""
        return self.peers.count == 1 or bool(self._agreed)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Defers the first signal, to any of the processes, until all can act on it."""
        self._together = self.peers.count > 1
        with self.defer(1):
            yield
            self._together = False

    @staticmethod
    def start(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        # JAX keeps its settings for each thread.
        return Interruption.start(settings.ours()(function), *arguments)


def run_epochs(progress: Progress, trainer: Trainer, journal: Journal, session: Session) -> None:
    """Trains the remaining epochs.

    A first signal takes effect after the current chunk, in the last chunk of an epoch after its
    evaluation; a second one at once.

    Raises:
        Interrupted: on a signal; `progress` has the state after the last chunk.
        NotFiniteError: no member is left that is finite.
        UserError: the directory was moved or removed, or a file cannot be written.
    """
    epochs = trainer.members[0].epochs
    with session.together():
        for epoch in range(max(map(len, journal.rows)) + 1, epochs + 1):
            rows = _run_epoch(progress, trainer, journal, epoch, session)
            with session.defer():
                journal.record(progress.state, rows)
                logger.info(f"Epoch {epoch}/{epochs} - {_line(rows)}")
            if session.on_epoch is not None:
                session.on_epoch([*journal.rows[0]])
            session.check()


def _run_epoch(
    progress: Progress, trainer: Trainer, journal: Journal, epoch: int, session: Session
) -> list[Row | None]:
    """Trains the remaining steps of an epoch; returns a row for each member that is not stopped."""
    before, losses_MxS = (epoch - 1) * trainer.steps, trainer.losses(progress.state)
    first, started = progress.step - before, time.perf_counter()

    def agree(start: int, stop: int) -> int:
        return session.agree(before + start, stop)

    # disable=None: silent unless the output is a terminal
    with tqdm(total=trainer.steps, initial=first, unit="step", leave=False, disable=None) as bar:
        bar.set_description(f"Epoch {epoch}/{trainer.members[0].epochs}")
        for start, stop in session.chunks.between(first, trainer.steps, agree):
            chunk = session.call(trainer.run, progress.state, epoch, start, stop)
            losses_MxS = chunk.losses_MxS
            with session.defer():  # a member is stopped as a whole
                _stop(trainer, journal, _not_finite(trainer, chunk, before, stop))
                progress.state = chunk.state
            if session.on_chunk is not None:
                session.on_chunk(progress.step)
            journal.folder.check()
            bar.update(stop - start)
            if stop < trainer.steps:
                session.check()
    seconds = (time.perf_counter() - started) / len(trainer.members)
    scores = session.call(trainer.evaluate, progress.state)
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


def _not_finite(trainer: Trainer, chunk: Chunk, before: int, stop: int) -> dict[int, int]:
    """The members that are not finite after a chunk, with the step at which they became so."""
    finite_MxS = np.isfinite(chunk.losses_MxS[:, :stop])
    if trainer.members[0].on_nan == "skip":  # parameters are finite until `max_skips` is exceeded
        finite_MxS[:] = True
    bad_M = ~(chunk.finite_M & finite_MxS.all(axis=1))
    # argmin: the first False. Where all losses are finite, the last step of the chunk.
    firsts_M = np.where(finite_MxS.all(axis=1), stop, finite_MxS.argmin(axis=1) + 1)
    return {k: before + int(firsts_M[k]) for k in np.flatnonzero(bad_M).tolist()}


def _stop(trainer: Trainer, journal: Journal, steps: dict[int, int]) -> None:
    """Stops members at steps, by their index; raises `NotFiniteError` if none is left."""
    for k in sorted(steps.keys() - journal.stopped.keys()):
        journal.stop(k, steps[k])
    if len(journal.stopped) < len(trainer.members):
        return
    config, step = trainer.members[0], max(journal.stopped.values())
    if config.on_nan == "skip":
        problem, advice = f"by step {step} more than {config.max_skips} in a row have", ""
    else:
        problem, advice = f"step {step} is the first to have", ", or set `on_nan='skip'`"
    kept, where = "", "with `overwrite=True`"
    if (saved := journal.saved_step) is not None:
        kept = f" {journal.folder.path} keeps its last good checkpoint, step {saved};"
        where = "in another `workdir`"
    raise NotFiniteError(
        f"epoch {(step - 1) // trainer.steps + 1}: {problem} a loss or gradient that is not "
        f"finite;{kept} lower `learning_rate`, set `clip_norm`{advice}, and train {where}"
    )


def _line(rows: list[Row | None]) -> str:
    """Describes an epoch for the log: of one member, or of the best, median and worst."""
    good = [row for row in rows if row is not None]
    first = good[0]
    line = f"{first.epoch_seconds * len(rows):.1f}s - {first.images_per_second:.0f} images/s - "
    if len(rows) == 1:
        skipped = f" - skipped: {first.skipped}" if first.skipped else ""
        losses = f"loss: {first.loss:.4f} - val_loss: {first.val_loss:.4f}"
        bits = "" if first.val_bits is None else f" - val_bits: {first.val_bits:.1f}"
        return f"{line}{losses} - val_psnr: {first.val_psnr:.2f}{bits}{skipped}"
    losses = [row.val_loss for row in good]
    best, median, worst = (f"{f(losses):.4f}" for f in (min, np.median, max))
    stopped = f" - stopped: {len(rows) - len(good)}" if len(good) < len(rows) else ""
    return f"{line}val_loss: best {best}, median {median}, worst {worst}{stopped}"
