"""Training with its files: epochs in chunks, the history, checkpoints, interruption, resumption."""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from cae_jax.errors import UserError
from cae_jax.runs import history, tensorboard
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.interruption import Interruption
from cae_jax.training.step import TrainState
from cae_jax.training.trainer import Programs

_SCALARS = ("loss", "val_loss", "val_psnr", "images_per_second")


@dataclasses.dataclass
class Training:
    """A run in training: what it works with, and how far it is.

    Attributes:
        state: after the last chunk of steps, on the host; before the first one, on the device.
        rows: of the history.
        saved_step: of the newest checkpoint; None if there is none.
    """

    workdir: Path
    programs: Programs
    checkpoints: Checkpoints
    state: TrainState
    rows: list[history.Row]
    saved_step: int | None

    @property
    def finished(self) -> bool:
        return len(self.rows) == self.programs.config.epochs

    def save(self, val_loss: float | None = None) -> None:
        """Starts to save the state, unless it is saved already."""
        step = int(self.state.step)
        if step != self.saved_step and step > 0:
            self.checkpoints.save(self.state, val_loss)
            self.saved_step = step


def resume(workdir: Path, programs: Programs, checkpoints: Checkpoints) -> Training:
    """The run as its newest intact checkpoint has it, or before its first step.

    Raises:
        UserError: all checkpoints are damaged, or they and the history do not belong together.
    """
    checkpoints.clean()
    newest, damage = checkpoints.find()
    for step, what in damage.items():
        assert newest is not None
        moved = checkpoints.set_aside(step, workdir / "damaged")
        print(f"{what}: moved to {moved}, going on after step {newest.step}", file=sys.stderr)
    state = programs.init_state
    epochs, saved_step = 0, None
    if newest is not None:
        state, saved_step = checkpoints.restore(newest.step, like=state), newest.step
        # Where the loss is not known, the last epoch has at least its evaluation ahead.
        known = newest.val_loss is not None
        epochs = (newest.step if known else max(newest.step - 1, 0)) // programs.steps
    return Training(workdir, programs, checkpoints, state, _read_rows(workdir, epochs), saved_step)


def _read_rows(workdir: Path, epochs: int) -> list[history.Row]:
    """The history of so many epochs; later ones, whose checkpoint is missing, are forgotten."""
    path = workdir / "history.csv"
    rows = [row for row in history.read(path) if row.epoch <= epochs]
    if [row.epoch for row in rows] != list(range(1, epochs + 1)):
        raise UserError(
            f"{path} has epochs {[row.epoch for row in rows]} and the newest checkpoint {epochs} "
            "of them; restore what is missing, or start anew with --overwrite"
        )
    if not epochs and (workdir / "result.json").exists():
        raise UserError(
            f"{workdir} is finished but its checkpoints are gone; start anew with --overwrite"
        )
    history.rewrite(path, rows)
    return rows


def run_epochs(
    training: Training,
    chunk_steps: int,
    interruption: Interruption,
    on_epoch: Callable[[list[history.Row]], None] | None = None,
) -> None:
    """Trains the epochs that are left.

    A first signal waits for the chunk at hand, or for what follows the last one of an epoch; a
    second one does not.

    Raises:
        Interrupted: on a signal; `training` is as it was after the last chunk.
        UserError: a number is not finite, or a file cannot be written.
    """
    first = len(training.rows) + 1
    if training.saved_step is not None:
        print(f"{training.workdir} resumes after step {training.saved_step}")
    state = training.state
    with (
        tensorboard.open_writer(training.workdir / "tensorboard", first) as writer,
        interruption.patience(1),
    ):
        for epoch in range(first, training.programs.config.epochs + 1):
            state, row = _run_epoch(training, state, epoch, chunk_steps, interruption)
            with interruption.patience():
                # The checkpoint last: it never knows of an epoch that the others do not.
                history.append(training.workdir / "history.csv", row)
                training.rows.append(row)
                writer.add(epoch, {name: getattr(row, name) for name in _SCALARS})
                training.save(row.val_loss)
                _print_row(row, training.programs.config.epochs)
            if on_epoch is not None:
                on_epoch(list(training.rows))
            interruption.check()


def _run_epoch(
    training: Training,
    state: TrainState,
    epoch: int,
    chunk_steps: int,
    interruption: Interruption,
) -> tuple[TrainState, history.Row]:
    """Trains what is left of an epoch and evaluates; `state` is `training.state` on the device."""
    programs = training.programs

    def after_chunk(state: TrainState) -> None:
        interruption.call(jax.block_until_ready, state)
        training.state = jax.tree.map(np.array, state)
        _check_finite(training, epoch)
        if int(training.state.step) < epoch * programs.steps:
            interruption.check()

    before = int(state.step)
    started = time.perf_counter()
    state = programs.train_epoch(state, epoch, chunk_steps, after_chunk=after_chunk)
    seconds = time.perf_counter() - started
    val_loss, val_psnr = interruption.call(programs.evaluate, state.params)
    losses_S = training.state.losses_S
    steps = int(training.state.step) - before
    return state, history.Row(
        epoch=epoch,
        step=int(training.state.step),
        loss=programs.epoch_loss(training.state),
        val_loss=val_loss,
        val_psnr=val_psnr,
        val_psnr_input=programs.psnr_input,
        skipped=int((~np.isfinite(losses_S)).sum()),
        epoch_seconds=seconds,
        images_per_second=programs.examples * steps / programs.steps / seconds,
    )


def _check_finite(training: Training, epoch: int) -> None:
    """Refuses to go on from a loss, gradient or parameter that is not finite.

    Where the config has such steps skipped, the parameters stay finite until one too many.
    """
    config, state = training.programs.config, training.state
    done = int(state.step) - (epoch - 1) * training.programs.steps
    finite = np.isfinite(state.losses_S[:done])
    if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)) and (
        finite.all() or config.on_nan == "skip"
    ):
        return
    step, advice = int(state.step) - done + np.flatnonzero([True, *finite])[-1] + 1, ""
    what = f"by step {int(state.step)} more than {config.max_skips} in a row have"
    if config.on_nan == "stop":
        what, advice = f"step {step} is the first to have", ", or give --on-nan skip"
    raise UserError(
        f"epoch {epoch}: {what} a loss or gradient that is not finite; "
        f"{training.workdir} keeps its last good checkpoint"
        f"{'' if training.saved_step is None else f', step {training.saved_step}'}; lower "
        f"--learning-rate, set --clip-norm{advice}, in another --workdir or with --overwrite"
    )


def _print_row(row: history.Row, epochs: int) -> None:
    skipped = f" - skipped: {row.skipped}" if row.skipped else ""
    print(
        f"Epoch {row.epoch}/{epochs} - {row.epoch_seconds:.1f}s - "
        f"{row.images_per_second:.0f} images/s - loss: {row.loss:.4f} - "
        f"val_loss: {row.val_loss:.4f} - val_psnr: {row.val_psnr:.2f}{skipped}",
        flush=True,
    )
