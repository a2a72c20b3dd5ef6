"""Writes and reads a training state with Orbax; the one module that knows Orbax.

The state is two items, the parameters and the rest, so that the parameters can be read alone.
"""

import contextlib
import errno
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import orbax.checkpoint
from flax import nnx

from cae_jax.atomic import TEMPORARY
from cae_jax.training.step import TrainState

# Orbax 1.0 moves the API of its module `v1` to the top level.
_at_top = hasattr(orbax.checkpoint, "save_checkpointables")
ocp: Any = orbax.checkpoint if _at_top else orbax.checkpoint.v1


def write(folder: Path, state: TrainState) -> None:
    """Writes a state to a new directory whose name ends in `atomic.TEMPORARY`.

    Raises:
        Exception: Orbax and TensorStore raise exceptions of many types; see `reason`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _without_patterns(folder.parent) as parent, _abandoning(), _alone():
        ocp.save_checkpointables(parent / folder.name, _items(state))


def read(folder: Path, like: TrainState) -> TrainState:
    """Reads a state, with the structure and devices of `like`.

    Raises:
        Exception: see `write`.
    """
    items = _read(folder, _items(like))
    return TrainState(_to_state(like.params, items["params"]), **items["training"])


def read_params(folder: Path, like: nnx.State) -> nnx.State:
    """Reads the parameters of a state, with the structure and devices of `like`.

    Raises:
        Exception: see `write`.
    """
    return _to_state(like, _read(folder, {"params": nnx.to_pure_dict(like)})["params"])


def reason(error: Exception) -> str:
    """Describes an error in one line: the system's own words where TensorStore's ten quote them."""
    text = " ".join(str(error).split())
    known = map(os.strerror, errno.errorcode)
    return next((words for words in known if words in text), text[:200])


def _items(state: TrainState) -> dict[str, Any]:
    """Splits a state into its two items."""
    training = state._asdict()
    return {"params": nnx.to_pure_dict(training.pop("params")), "training": training}


def _read(folder: Path, like: dict[str, Any]) -> dict[str, Any]:
    def describe(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    with _without_patterns(folder) as path, _abandoning(), _alone():
        return ocp.load_checkpointables(path, jax.tree.map(describe, like))


@contextlib.contextmanager
def _without_patterns(folder: Path) -> Iterator[Path]:
    """A path of the directory without brackets and backslashes, which Orbax takes for patterns."""
    if not set(str(folder)) & set("[]\\"):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "checkpoint"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


def _to_state(like: nnx.State, values: dict[str, Any]) -> nnx.State:
    # A copy, because replacing writes into the State that it is given.
    state = jax.tree.map(lambda leaf: leaf, like)
    nnx.replace_by_pure_dict(state, values)
    return state


def _alone() -> contextlib.AbstractContextManager[Any]:
    """Keeps Orbax from waiting for the other processes of a training, of which 0 alone saves."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    # It has `MultiprocessingOptions` for this, which one of its checks of a save does not heed.
    return mock.patch.object(jax, "process_count", return_value=1)


@contextlib.contextmanager
def _abandoning() -> Iterator[None]:
    """Drops the exceptions of what Orbax abandons when one read or write fails; also afterwards."""
    hook = sys.unraisablehook
    if getattr(hook, "func", None) is not _unraisable:  # that of an earlier failure
        sys.unraisablehook = partial(_unraisable, hook)
    yield
    sys.unraisablehook = hook  # not after a failure


def _unraisable(hook: Callable[[Any], None], problem: Any) -> None:
    abandoned = "_read_array" in getattr(problem.object, "__qualname__", "")
    if not abandoned and str(problem.exc_value) != "Event loop is closed":
        hook(problem)


def _not_of_a_save(record: logging.LogRecord) -> bool:
    return f"{TEMPORARY}.orbax-checkpoint" not in record.getMessage()


# Orbax logs a line per save. When one write of a save fails, it never awaits the others: asyncio
# logs "exception was never retrieved" for those that have begun, and Python warns of the rest.
logging.getLogger("absl").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").addFilter(_not_of_a_save)
warnings.filterwarnings(
    "ignore", r"coroutine '.*(_run_background|_background_\w+|_read_array)' was", RuntimeWarning
)
