"""The checkpoints of a run: which there are, which stay, and that they are intact.

A checkpoint is a folder named after its step with two Orbax items, the parameters and what only
training needs, and a manifest. It is written under another name, the manifest last, and renamed;
for its removal it is renamed first: a folder named after a step is whole, or damaged.
"""

import contextlib
import itertools
import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx

from cae_jax.config import TrainConfig, to_dict
from cae_jax.errors import UserError
from cae_jax.runs import manifest, orbax_io
from cae_jax.training.step import TrainState

KEEP_NEWEST = 3
_Like = TypeVar("_Like", TrainState, nnx.State)


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
        orbax_io.silence()
        self.folder = Path(folder).absolute()
        self._config = to_dict(config)
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._saving: Future[None] | None = None

    def clean(self) -> None:
        """Removes what a process that was killed has left half-written or half-removed."""
        for path in self.folder.glob(f"*{orbax_io.TEMPORARY}*"):
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
        return self._restore(orbax_io.read, step, like)

    def restore_params(self, step: int, like: nnx.State) -> nnx.State:
        """The parameters at a step; `like` gives their structure and their devices.

        Raises:
            UserError: they cannot be restored, or not into this structure.
        """
        return self._restore(orbax_io.read_params, step, like)

    def set_aside(self, step: int, folder: Path) -> Path:
        """Moves a damaged checkpoint into a folder, out of the way of those to come."""
        folder.mkdir(exist_ok=True)
        names = (folder / f"{step}-{number}" for number in itertools.count())
        return (self.folder / str(step)).rename(next(name for name in names if not name.exists()))

    def _save(self, state: TrainState, val_loss: float | None) -> None:
        path = self.folder / str(state.step)
        temporary = path.with_suffix(orbax_io.TEMPORARY)
        try:
            orbax_io.write(temporary, state)
            facts = {**Checkpoint(int(state.step), val_loss)._asdict(), "config": self._config}
            manifest.write(temporary, facts)
            if path.exists():  # saved by an interruption before the loss was known
                self._remove(path)
            temporary.rename(path)
            for step in self._superseded():
                self._remove(self.folder / str(step))
        except Exception as error:  # Orbax and TensorStore raise all kinds
            self.clean()
            raise UserError(
                f"checkpoint {path} cannot be written ({orbax_io.reason(error)}); free space or "
                "give the right to write, and run the same command again: it goes on after the "
                "last one"
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
        shutil.rmtree(path.rename(path.with_suffix(f"{orbax_io.TEMPORARY}-removed")))

    def _restore(self, read: Callable[[Path, _Like], _Like], step: int, like: _Like) -> _Like:
        path = self.folder / str(step)
        try:
            return read(path, like)
        except Exception as error:  # Orbax and TensorStore raise all kinds
            raise UserError(
                f"checkpoint {path} does not fit this model ({orbax_io.reason(error)}); put back "
                "that of the run, or start anew with --overwrite"
            ) from error


@contextlib.contextmanager
def open_checkpoints(folder: str | Path, config: TrainConfig) -> Iterator[Checkpoints]:
    """`Checkpoints` for a ``with`` statement."""
    checkpoints = Checkpoints(folder, config)
    try:
        yield checkpoints
    finally:
        checkpoints.close()
