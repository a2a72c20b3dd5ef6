"""Finds, retains and verifies the checkpoints of a run.

A checkpoint is a directory named after its step. It holds two Orbax items, the parameters and the
rest of the training state, the history so far, and a manifest with the SHA-256 of every file. A
save writes the manifest last, waits until all is on the disk, then renames the directory from a
temporary name; a removal renames it back first. A directory named after a step is therefore
complete, even after a power failure, or damaged.

Orbax's own checkpoint manager has no hook for a manifest that is part of the commit.
"""

import contextlib
import itertools
import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self, TypeVar

import jax
import numpy as np
from flax import nnx

from cae_jax import atomic
from cae_jax.config import NAMED, RUN_MARK, TrainConfig, differences, to_dict, upgraded
from cae_jax.errors import UserError
from cae_jax.runs import history, manifest
from cae_jax.training.step import TrainState

KEEP_NEWEST = 3
_Like = TypeVar("_Like", TrainState, nnx.State)


class Checkpoint(NamedTuple):
    """An intact checkpoint.

    Attributes:
        step: steps since the start of training.
        val_loss: validation loss of its parameters; None for a checkpoint within an epoch.
    """

    step: int
    val_loss: float | None


class Checkpoints:
    """The checkpoints of one run: the newest three at ends of epochs and the one of lowest loss.

    A context manager, which waits for the last save. Saving is asynchronous and atomic. One process
    may write to a directory while others read it.

    Args:
        folder: directory of the checkpoints; created by the first save.
        config: of the run; checkpoints of another config are refused.
        check: called before each change; raises if the directory may no longer be written.
        run: directory of the run; by default the parent of `folder`.
    """

    def __init__(
        self,
        folder: str | Path,
        config: TrainConfig,
        check: Callable[[], None] = lambda: None,
        run: Path | None = None,
    ):
        self.folder = Path(folder).absolute()
        self.check, self._run = check, run or self.folder.parent
        self._config = to_dict(config)
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._saving: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def clean(self) -> None:
        """Removes checkpoints that a killed process had half written or half removed."""
        for path in self.folder.glob(f"*{atomic.TEMPORARY}*"):
            if path.name.split(".")[0].isdecimal():  # of a step
                shutil.rmtree(path, ignore_errors=True)

    def save(
        self, state: TrainState, val_loss: float | None, rows: Sequence[history.Row] = ()
    ) -> None:
        """Starts to save a state, which may be donated afterwards.

        Args:
            state: the training state.
            val_loss: validation loss of its parameters; None within an epoch.
            rows: the history so far, of which the checkpoint keeps a copy.

        Raises:
            UserError: the previous save failed.
        """
        self.wait()
        # A copy, because on a CPU the next step may write to the same buffers.
        state = jax.tree.map(np.array, state)
        self._saving = self._pool.submit(self._save, state, val_loss, list(rows))

    def wait(self) -> None:
        """Waits for the current save.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def find(self, *, best: bool = False) -> tuple[Checkpoint | None, dict[int, str]]:
        """Finds the newest intact checkpoint.

        Args:
            best: find the one of lowest ``val_loss`` instead.

        Returns:
            the checkpoint, or None if there is none; and the damage of newer or better ones, by
            step.

        Raises:
            UserError: all are damaged, or the first intact one is of another config or of a later
                version.
            FileNotFoundError: another process has just removed one.
        """
        damage: dict[int, str] = {}
        for step in self._best_first() if best else reversed(self._steps()):
            try:
                return self._verify(step), damage
            except manifest.DamagedError as error:
                damage[step] = str(error)
        if damage:
            raise UserError(
                f"no checkpoint in {self.folder} is intact: {'; '.join(damage.values())}; restore "
                f"one from a copy, or remove {self.folder.parent} and train again"
            )
        return None, damage

    def rows(self, step: int) -> list[history.Row] | None:
        """The history up to an intact checkpoint; None if an earlier version wrote it."""
        path = self.folder / str(step) / history.NAME
        return history.read(path) if path.exists() else None

    def restore(self, step: int, like: _Like) -> _Like:
        """Restores the training state at a step, or only its parameters.

        Args:
            step: of the checkpoint.
            like: a training state or parameters of the same structure, on the devices to use.

        Raises:
            UserError: it cannot be restored, or has another structure.
            FileNotFoundError: another process has just removed it.
        """
        orbax_io, path = _orbax_io(), self.folder / str(step)
        read: Any = orbax_io.read if isinstance(like, TrainState) else orbax_io.read_params
        try:
            return read(path, like)
        except Exception as error:  # Orbax and TensorStore raise exceptions of many types
            if not path.exists():
                raise FileNotFoundError(path) from error
            raise UserError(
                f"checkpoint {path} does not fit this model ({orbax_io.reason(error)}); restore "
                "the checkpoint and config.json of one run"
            ) from error

    def set_aside(self, step: int, folder: Path) -> Path:
        """Moves a damaged checkpoint into `folder` and returns its new path."""
        folder.mkdir(exist_ok=True)
        names = (folder / f"{step}-{number}" for number in itertools.count())
        target = next(name for name in names if not name.exists())
        shutil.move(self.folder / str(step), target)  # `checkpoints` may be on another disk
        return target

    def _save(self, state: TrainState, val_loss: float | None, rows: list[history.Row]) -> None:
        path = self.folder / str(state.step)
        advice = "free space or grant write permission and run again to resume"
        with atomic.writing(f"checkpoint {path}", advice):
            try:
                self._write(path, state, val_loss, rows)
            except Exception as error:  # Orbax and TensorStore raise exceptions of many types
                try:
                    self.check()
                except UserError:
                    self._leave()
                    raise
                self.clean()
                if isinstance(error, UserError):
                    raise
                raise OSError(_orbax_io().reason(error)) from error

    def _write(
        self, path: Path, state: TrainState, val_loss: float | None, rows: list[history.Row]
    ) -> None:
        self.check()
        temporary = path.with_suffix(atomic.TEMPORARY)
        _orbax_io().write(temporary, state)
        history.write(temporary / history.NAME, rows)
        checkpoint = Checkpoint(int(state.step), val_loss)
        manifest.write(temporary, {**checkpoint._asdict(), "config": self._config})
        self.check()
        if path.exists():  # saved on an interruption, before the loss was known
            self._remove(path)
        temporary.rename(path)
        atomic.sync(self.folder, needed=True)  # before an older one is removed
        for step in self._superseded():
            self._remove(self.folder / str(step))

    def _leave(self) -> None:
        """Removes what TensorStore has written to the old path of a directory that was moved."""
        for _ in range(10):  # abandoned writes may still be running
            if (self._run / RUN_MARK).exists():  # of another run
                return
            self.clean()
            for folder in (self.folder, self.folder.parent, self._run):
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()
            time.sleep(0.1)

    def _verify(self, step: int) -> Checkpoint:
        folder = self.folder / str(step)
        try:
            metadata = manifest.verify(folder)
        except manifest.NewerError as error:
            raise UserError(f"checkpoint {error}; update cae-jax") from error
        except PermissionError as error:
            raise UserError(
                f"checkpoint {folder} cannot be read ({error}); grant read permission"
            ) from error
        except manifest.DamagedError:
            if not folder.exists():
                raise FileNotFoundError(folder) from None
            raise
        if metadata["step"] != step:
            raise manifest.DamagedError(f"{folder} holds step {metadata['step']}")
        there, now = upgraded(metadata["config"]), self._config  # there may be more keys
        # A run that was given more epochs has checkpoints from before.
        if there.get("epochs") in now["restarts"]:
            del there["epochs"]
        if there.get("restarts") == now["restarts"][: len(there.get("restarts", ()))]:
            del there["restarts"]
        if not NAMED.keys() & {there.get("data"), now["data"]}:
            for name in ("data", "decode"):  # images may have moved; their digest identifies them
                there.pop(name, None)
        differing = differences(there, now)
        if differing:
            raise UserError(
                f"checkpoint {folder} has another config than config.json: {', '.join(differing)}; "
                "restore config.json"
            )
        return Checkpoint(metadata["step"], metadata["val_loss"])

    def _steps(self) -> list[int]:
        """Lists the steps of all checkpoints in ascending order, including damaged ones."""
        if self.folder.is_symlink() and not self.folder.exists():
            raise UserError(f"{self.folder} is a link to nothing; mount the disk of its target")
        paths = self.folder.iterdir() if self.folder.is_dir() else []
        return sorted(int(path.name) for path in paths if path.name.isdecimal())

    def _best_first(self) -> list[int]:
        """Lists the steps of all checkpoints at ends of epochs by loss, unknown losses last."""

        losses: dict[int, float | None] = {}
        for step in self._steps():
            try:
                losses[step] = manifest.read(self.folder / str(step))["val_loss"]
            except manifest.DamagedError:
                losses[step] = math.inf
        known = {step: loss for step, loss in losses.items() if loss is not None}
        return sorted(known, key=known.__getitem__)

    def _superseded(self) -> list[int]:
        """Lists the steps of the checkpoints that are neither among the newest nor the best."""
        steps, ranking = self._steps(), self._best_first()
        keep = {steps[-1], *sorted(ranking)[-KEEP_NEWEST:], *ranking[:1]}
        return [step for step in steps if step not in keep]

    def _remove(self, path: Path) -> None:
        shutil.rmtree(path.rename(path.with_suffix(f"{atomic.TEMPORARY}-removed")))


def _orbax_io() -> ModuleType:
    """Orbax takes a third of a second to import: a new run does so during its first epoch."""
    from cae_jax.runs import orbax_io

    return orbax_io
