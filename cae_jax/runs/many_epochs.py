"""Runs the epochs of a population in chunks of steps; checkpoints and resumes all members at once.

A member that is not finite any more is stopped: what its arrays hold from then on means nothing.
"""

import dataclasses
import importlib
import logging
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.runs import history, members
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.epochs import Chunks, epochs_before, newest_intact
from cae_jax.runs.folder import OpenFolder, checkpoint_folder
from cae_jax.runs.interruption import Interruption
from cae_jax.runs.members import Member, Members
from cae_jax.runs.split import Setup, Splitter
from cae_jax.training import metrics, population
from cae_jax.training.population import Chunk, Population
from cae_jax.training.step import TrainState, make_keys
from cae_jax.training.trainer import initial_state

logger = logging.getLogger(__name__)
# Stands for a stopped member in the history of a checkpoint.
_STOPPED = history.Row(0, 0, math.nan, math.nan, math.nan, None, 0, math.nan, math.nan)


@dataclasses.dataclass
class Progress:
    """The progress of a population.

    Attributes:
        folder: directory of the population, open.
        checkpoints: of all members together.
        saved: the state of all members on the host: the newest checkpoint's, or the initial one.
        saved_step: step of the newest checkpoint; None if there is none.
        rows: of each epoch, of each member; of one that is stopped, `_STOPPED` stands there.
        stopped: index of a stopped member to the step at which it became not finite.
        ended: whether the runs of the members and the summary were written before.
        population: the programs, once they are compiled.
        states: of the members on the device, once they train.
    """

    folder: OpenFolder
    checkpoints: Checkpoints
    saved: TrainState
    saved_step: int | None
    rows: list[list[history.Row]]
    stopped: dict[int, int]
    ended: bool = False
    population: Population | None = None
    states: list[TrainState] | None = None

    @property
    def step(self) -> int:
        return int((self.states[0] if self.states else self.saved).step)

    def save(self, val_loss: float | None = None) -> None:
        """Starts to save the states, unless they are saved already."""
        if self.population and self.states and self.step != self.saved_step:
            self.saved = self.population.get(self.states)
            self.checkpoints.save(self.saved, val_loss, [row for rows in self.rows for row in rows])
            self.saved_step = self.step

    def rows_of(self, k: int) -> list[history.Row]:
        """The history of a member, up to where it was stopped."""
        return [rows[k] for rows in self.rows if not math.isnan(rows[k].val_loss)]

    def members(self, setup: Setup) -> dict[str, Member]:
        """The members with their histories, by name."""
        return {
            name: Member(config, self.rows_of(k), self.stopped.get(k))
            for k, (name, config) in enumerate(setup.members.items())
        }


def resume(folder: OpenFolder, checkpoints: Checkpoints, setup: Setup) -> Progress:
    """Restores the newest intact checkpoint, or starts before the first step.

    Raises:
        UserError: all checkpoints are damaged.
    """
    newest, there = newest_intact(folder, checkpoints), members.read(folder.path)
    assert there is not None
    if newest is None:
        if there.ended:
            raise UserError(
                f"{folder.path} has ended but its checkpoints are gone; restore them from a copy, "
                "or choose another `workdir`"
            )
        return Progress(folder, checkpoints, _initial(setup), None, [], {})
    count, examples = len(setup.members), len(setup.train_images)
    shapes = population.state_shapes(setup.config, setup.model, examples, count)
    like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    saved = jax.tree.map(np.asarray, checkpoints.restore(newest.step, like))
    flat = (checkpoints.rows(newest.step) or [])[: epochs_before(newest, setup.steps) * count]
    rows = [flat[first : first + count] for first in range(0, len(flat), count)]
    # A member that was stopped after this checkpoint is trained again, to the same end.
    steps = {setup.names.index(name): step for name, step in there.stopped.items()}
    stopped = {k: step for k, step in steps.items() if step <= newest.step}
    return Progress(folder, checkpoints, saved, newest.step, rows, stopped, there.ended)


def _initial(setup: Setup) -> TrainState:
    """The state of all members before the first step, on the host."""

    def alone(config) -> TrainState:
        model = autoencoders.build(config, nnx.Rngs(params=make_keys(config.seed).init))
        state = initial_state(config, model, len(setup.train_images))
        return jax.tree.map(np.asarray, state)

    return population.stack(list(map(alone, setup.configs)))


def run_epochs(
    setup: Setup, progress: Progress, chunks: Chunks, interruption: Interruption
) -> None:
    """Trains the remaining epochs; signals and errors as in `cae_jax.runs.epochs.run_epochs`."""
    assert progress.population is not None
    first, workdir = len(progress.rows) + 1, progress.folder.path
    importing = interruption.start(importlib.import_module, "cae_jax.runs.orbax_io")
    if progress.saved_step is not None:
        logger.info("%s resumes after step %d", workdir, progress.saved_step)
    progress.states = progress.population.put(progress.saved)
    with interruption.patience(1):
        for epoch in range(first, setup.config.epochs + 1):
            rows = _run_epoch(setup, progress, epoch, chunks, interruption)
            importing.result()
            with interruption.patience():
                progress.rows.append(rows)
                losses = [row.val_loss for row in rows if not math.isnan(row.val_loss)]
                progress.save(float(np.median(losses)))
                _log_epoch(setup, rows)
            interruption.check()


def _run_epoch(
    setup: Setup, progress: Progress, epoch: int, chunks: Chunks, interruption: Interruption
) -> list[history.Row]:
    """Trains the remaining steps of an epoch and evaluates; a row for each member."""
    trained, steps, before = progress.population, setup.steps, (epoch - 1) * setup.steps
    assert trained is not None
    assert progress.states is not None
    first, losses_MxS = progress.step - before, None
    started = time.perf_counter()
    orders = trained.orders(epoch)
    # disable=None: silent where the output is no terminal
    with tqdm(total=steps, initial=first, unit="step", leave=False, disable=None) as bar:
        bar.set_description(f"Epoch {epoch}/{setup.config.epochs}")
        for start, stop in chunks.of(first, steps):
            chunk = interruption.call(trained.run, progress.states, orders, start, stop)
            with interruption.patience():  # the last good states are those before the chunk
                _stop_where_not_finite(setup, progress, chunk, before, stop)
                progress.states, losses_MxS = chunk.states, chunk.losses_MxS
            progress.folder.check()
            bar.update(stop - start)
            if stop < steps:
                interruption.check()
    seconds = (time.perf_counter() - started) / len(setup.members)
    scores = interruption.call(trained.evaluate, progress.states)
    if losses_MxS is None:  # of an epoch that was interrupted after its last step
        losses_MxS = trained.get(progress.states).losses_S
    with interruption.patience():
        bad = [k for k, score in enumerate(scores) if not math.isfinite(score.loss)]
        _stop(setup, progress, dict.fromkeys(bad, progress.step))
    examples = len(setup.train_images)
    return [
        _STOPPED._replace(epoch=epoch, step=progress.step)
        if k in progress.stopped
        else history.Row(
            epoch=epoch,
            step=progress.step,
            loss=metrics.epoch_loss(np.asarray(losses_S), examples, setup.config.batch_size),
            val_loss=score.loss,
            val_psnr=score.psnr,
            val_psnr_input=score.psnr_input,
            skipped=int((~np.isfinite(losses_S)).sum()),
            epoch_seconds=seconds,
            images_per_second=(steps - first) / steps * examples / seconds,
        )
        for k, (score, losses_S) in enumerate(zip(scores, losses_MxS, strict=True))
    ]


def _stop_where_not_finite(
    setup: Setup, progress: Progress, chunk: Chunk, before: int, stop: int
) -> None:
    """Stops the members with a loss, gradient or parameter that is not finite after a chunk."""
    finite_MxS = np.isfinite(chunk.losses_MxS[:, :stop])
    skips = setup.config.on_nan == "skip"  # until too many updates in a row are skipped
    good_M = chunk.finite_M & (finite_MxS.all(axis=1) | skips)
    steps = {}
    for k in np.flatnonzero(~good_M).tolist():
        found = [] if skips else np.flatnonzero(~finite_MxS[k])
        steps[k] = before + (int(found[0]) + 1 if len(found) else stop)
    _stop(setup, progress, steps)


def _stop(setup: Setup, progress: Progress, steps: dict[int, int]) -> None:
    """Stops members, and writes runs of their last good states.

    Args:
        setup: of the population.
        progress: of the population.
        steps: index of a member to the step at which it became not finite.

    Raises:
        UserError: no member is left.
    """
    workdir = progress.folder.path
    for k in sorted(steps.keys() - progress.stopped.keys()):
        kept = _keep_last_good(setup, progress, k)
        progress.stopped[k] = steps[k]
        logger.warning(
            "%s is stopped: step %d has a loss, gradient or parameter that is not finite; %s",
            setup.names[k],
            steps[k],
            f"{workdir / setup.names[k]} keeps its last good checkpoint"
            if kept
            else "it has no checkpoint yet",
        )
        stopped = {setup.names[k]: step for k, step in progress.stopped.items()}
        with progress.folder.writing():
            members.write(workdir, Members(setup.members, stopped, ended=False))
    if len(progress.stopped) == len(setup.members):
        skip = "" if setup.config.on_nan == "skip" else ", or set `on_nan='skip'`"
        raise UserError(
            f"all members of {workdir} have a loss, gradient or parameter that is not finite, the "
            f"last one at step {max(progress.stopped.values())}; lower `learning_rate`, set "
            f"`clip_norm`{skip}, and train in another `workdir`"
        )


def _keep_last_good(setup: Setup, progress: Progress, k: int) -> bool:
    """Writes the run of a member from the newest checkpoint; whether that has a good state."""
    folder, state = progress.folder.path, population.member(progress.saved, k)
    if any(path.name.isdecimal() for path in checkpoint_folder(folder / setup.names[k]).glob("*")):
        return True  # by a process that was interrupted since
    progress.folder.check()
    leaves = jax.tree.leaves(state.params)
    if progress.saved_step is None or not all(np.isfinite(leaf).all() for leaf in leaves):
        return False
    Splitter(setup, folder).write(setup.names[k], state, progress.rows_of(k))
    return True


def _log_epoch(setup: Setup, rows: list[history.Row]) -> None:
    good = {
        name: row
        for name, row in zip(setup.members, rows, strict=True)
        if not math.isnan(row.val_loss)
    }
    losses = {name: row.val_loss for name, row in good.items()}
    best, row = min(losses, key=losses.__getitem__), next(iter(good.values()))
    seconds, stopped = row.epoch_seconds * len(rows), len(rows) - len(good)
    logger.info(
        f"Epoch {row.epoch}/{setup.config.epochs} - {seconds:.1f}s - "
        f"{row.images_per_second:.0f} images/s - val_loss: best {losses[best]:.4f} ({best}), "
        f"median {np.median([*losses.values()]):.4f}, worst {max(losses.values()):.4f}"
        + (f" - stopped: {stopped}" if stopped else "")
    )
