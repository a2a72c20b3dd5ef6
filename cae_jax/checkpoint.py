"""Saving and restoring of training states: the one module that knows Orbax.

A checkpoint is a folder named after its step with two Orbax items, the parameters and what only
training needs, and a manifest. It is written under another name, the manifest last, and renamed;
for its removal it is renamed first: a folder named after a step is whole, or damaged.
"""

import contextlib
import errno
import itertools
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from cae_jax import manifest
from cae_jax.config import TrainConfig, to_dict
from cae_jax.errors import UserError
from cae_jax.train import TrainState

KEEP_NEWEST = 3
_TEMPORARY = ".tmp"


class Checkpoint(NamedTuple):
    """An intact checkpoint.

    Attributes:
        step: steps done since the start of training.
        val_loss: of its parameters; None where training was interrupted within an epoch.
    """

    step: int
    val_loss: float | None


class Checkpoints:
    """The checkpoints of one run: the newest three of whole epochs and the one of lowest loss.

    Saving is asynchronous and atomic; `close` waits for it. One process may write to a folder,
    any number may read it meanwhile.

    Args:
        folder: need not exist.
        config: of the run; checkpoints of another one are refused.
    """

    def __init__(self, folder: str | Path, config: TrainConfig):
        # Orbax tells of every save, and of every error that it raises as well; asyncio of those
        # that are not raised, because another write of the same save failed before.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        logging.getLogger("asyncio").addFilter(_not_of_a_save)
        self.folder = Path(folder).absolute()
        self._config = to_dict(config)
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._saving: Future[None] | None = None

    def clean(self) -> None:
        """Removes what a process that was killed has left half-written or half-removed."""
        for path in self.folder.glob(f"*{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, state: TrainState, val_loss: float | None) -> None:
        """Starts to save a state; it may be donated afterwards.

        Args:
            state: what to save.
            val_loss: of its parameters; None within an epoch.

        Raises:
            UserError: the save before this one has failed.
        """
        self.wait()
        # A copy: on the CPU the saving thread would read the very buffers that the next step
        # writes to.
        state = jax.tree.map(np.array, state)
        self._saving = self._pool.submit(self._save, state, val_loss)

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
            UserError: it could not be written.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """`wait`, and an end to saving."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def find(self, *, best: bool = False) -> tuple[Checkpoint | None, dict[int, str]]:
        """The newest intact checkpoint.

        Args:
            best: that of the lowest ``val_loss`` instead.

        Returns:
            it, or None if there are none at all; and what is wrong with those passed over, by step.

        Raises:
            UserError: all are damaged, or the first intact one is of another config or of a later
                version.
            FileNotFoundError: the training that is going on has just removed one.
        """
        damage: dict[int, str] = {}
        for step in self._best_first() if best else reversed(self._steps()):
            try:
                return self._verify(step), damage
            except manifest.DamagedError as error:
                damage[step] = str(error)
        if damage:
            raise UserError(
                f"no checkpoint in {self.folder} is intact: {'; '.join(damage.values())}; put back "
                "a copy of one, or start anew with --overwrite"
            )
        return None, damage

    def __contains__(self, checkpoint: Checkpoint) -> bool:
        """Whether it is still there."""
        return (self.folder / str(checkpoint.step)).exists()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The whole state at a step; `like` gives its structure and its devices.

        Raises:
            UserError: it cannot be restored, or not into this structure.
        """
        items = self._restore(step, params=nnx.to_pure_dict(like.params), training=_rest(like))
        return TrainState(_to_state(like.params, items["params"]), **items["training"])

    def restore_params(self, step: int, like: nnx.State) -> nnx.State:
        """The parameters at a step; `like` gives their structure and their devices.

        Raises:
            UserError: they cannot be restored, or not into this structure.
        """
        return _to_state(like, self._restore(step, params=nnx.to_pure_dict(like))["params"])

    def set_aside(self, step: int, folder: Path) -> Path:
        """Moves a damaged checkpoint into a folder, out of the way of those to come."""
        folder.mkdir(exist_ok=True)
        names = (folder / f"{step}-{number}" for number in itertools.count())
        return (self.folder / str(step)).rename(next(name for name in names if not name.exists()))

    def _save(self, state: TrainState, val_loss: float | None) -> None:
        path = self.folder / str(state.step)
        temporary = path.with_suffix(_TEMPORARY)
        hook, sys.unraisablehook = sys.unraisablehook, partial(_unraisable, sys.unraisablehook)
        try:
            with _checkpointer("params", "training") as checkpointer:
                checkpointer.save(
                    temporary,
                    ocp.args.Composite(
                        params=ocp.args.StandardSave(nnx.to_pure_dict(state.params)),
                        training=ocp.args.StandardSave(_rest(state)),
                    ),
                )
            facts = {**Checkpoint(int(state.step), val_loss)._asdict(), "config": self._config}
            manifest.write(temporary, facts)
            if path.exists():  # saved by an interruption before the loss was known
                self._remove(path)
            temporary.rename(path)
            for step in self._superseded():
                self._remove(self.folder / str(step))
            sys.unraisablehook = hook
        except Exception as error:  # Orbax and TensorStore raise all kinds
            self.clean()
            raise UserError(
                f"checkpoint {path} cannot be written ({_reason(error)}); free space or give "
                "the right to write, and run the same command again: it goes on after the last one"
            ) from error

    def _verify(self, step: int) -> Checkpoint:
        folder = self.folder / str(step)
        try:
            facts = manifest.verify(folder)
        except manifest.NewerError as error:
            raise UserError(f"checkpoint {error}; update cae-jax") from error
        except PermissionError as error:
            raise UserError(f"checkpoint {folder} may not be read ({error})") from error
        except manifest.DamagedError:
            if not folder.exists():
                raise FileNotFoundError(folder) from None
            raise
        differing = [
            f"{key} ({value} there, {self._config.get(key)} now)"
            for key, value in facts["config"].items()  # later versions may have more keys
            if self._config.get(key) != value
        ]
        if differing:
            raise UserError(
                f"checkpoint {folder} was trained with another config than the run's config.json "
                f"has now: {', '.join(differing)}; put that back"
            )
        return Checkpoint(facts["step"], facts["val_loss"])

    def _steps(self) -> list[int]:
        """The steps of all checkpoints in rising order, damaged ones included."""
        paths = self.folder.iterdir() if self.folder.is_dir() else []
        return sorted(int(path.name) for path in paths if path.name.isdecimal())

    def _best_first(self) -> list[int]:
        """The steps of all checkpoints of whole epochs by loss, those without a manifest last."""

        def loss(step: int) -> float | None:
            try:
                return manifest.read(self.folder / str(step))["val_loss"]
            except manifest.DamagedError:
                return math.inf

        losses = {step: loss(step) for step in self._steps()}
        known = {step: loss for step, loss in losses.items() if loss is not None}
        return sorted(known, key=known.__getitem__)

    def _superseded(self) -> list[int]:
        """Steps of the checkpoints that are neither new nor the best."""
        steps, ranking = self._steps(), self._best_first()
        keep = {steps[-1], *sorted(ranking)[-KEEP_NEWEST:], *ranking[:1]}
        return [step for step in steps if step not in keep]

    def _remove(self, path: Path) -> None:
        shutil.rmtree(path.rename(path.with_suffix(f"{_TEMPORARY}-removed")))

    def _restore(self, step: int, **like: Any) -> Any:
        targets = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
            for name, tree in like.items()
        }
        path = self.folder / str(step)
        try:
            with _checkpointer(*like) as checkpointer:
                return checkpointer.restore(path, ocp.args.Composite(**targets))
        except Exception as error:  # Orbax and TensorStore raise all kinds
            raise UserError(
                f"checkpoint {path} does not fit this model ({_reason(error)}); put back that "
                "of the run, or start anew with --overwrite"
            ) from error


@contextlib.contextmanager
def open_checkpoints(folder: str | Path, config: TrainConfig) -> Iterator[Checkpoints]:
    """`Checkpoints` for a ``with`` statement."""
    checkpoints = Checkpoints(folder, config)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def _checkpointer(*items: str) -> ocp.Checkpointer:
    handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in items}
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))


def _rest(state: TrainState) -> dict[str, Any]:
    """What only training needs."""
    return {name: value for name, value in state._asdict().items() if name != "params"}


def _to_state(like: nnx.State, values: dict[str, Any]) -> nnx.State:
    # A copy, because replacing writes into the State it is given.
    state = jax.tree.map(lambda leaf: leaf, like)
    nnx.replace_by_pure_dict(state, values)
    return state


def _unraisable(hook: Callable[[Any], None], problem: Any) -> None:
    """Keeps quiet of the writes that Orbax leaves behind when one of them fails."""
    if str(problem.exc_value) != "Event loop is closed":
        hook(problem)


def _not_of_a_save(record: logging.LogRecord) -> bool:
    return f"{_TEMPORARY}.orbax-checkpoint" not in record.getMessage()


def _reason(error: Exception) -> str:
    """One line; of what TensorStore tells in ten, the system's own words."""
    text = " ".join(str(error).split())
    known = map(os.strerror, errno.errorcode)
    return next((words for words in known if words in text), text[:200])
