"""A training state as files of Orbax: the one module that knows Orbax.

Two items, the parameters and what only training needs: the parameters can be read alone.
"""

import errno
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from cae_jax.training.step import TrainState

# What the name of a folder ends in while it is written.
TEMPORARY = ".tmp"


def silence() -> None:
    """Keeps Orbax from telling of every save, and of errors that are raised as well.

    asyncio tells of those that are not, because another write of the same save failed before.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_not_of_a_save)


def write(folder: Path, state: TrainState) -> None:
    """Writes a state to a new folder whose name ends in `TEMPORARY`.

    Raises:
        Exception: Orbax and TensorStore raise all kinds; see `reason`.
    """
    hook, sys.unraisablehook = sys.unraisablehook, partial(_unraisable, sys.unraisablehook)
    with _checkpointer("params", "training") as checkpointer:
        checkpointer.save(
            folder,
            ocp.args.Composite(
                params=ocp.args.StandardSave(nnx.to_pure_dict(state.params)),
                training=ocp.args.StandardSave(_rest(state)),
            ),
        )
    sys.unraisablehook = hook


def read(folder: Path, like: TrainState) -> TrainState:
    """A whole state; `like` gives its structure and its devices.

    Raises:
        Exception: as `write`.
    """
    items = _read(folder, params=nnx.to_pure_dict(like.params), training=_rest(like))
    return TrainState(_to_state(like.params, items["params"]), **items["training"])


def read_params(folder: Path, like: nnx.State) -> nnx.State:
    """The parameters of a state; `like` gives their structure and their devices.

    Raises:
        Exception: as `write`.
    """
    return _to_state(like, _read(folder, params=nnx.to_pure_dict(like))["params"])


def reason(error: Exception) -> str:
    """One line; of what TensorStore tells in ten, the system's own words."""
    text = " ".join(str(error).split())
    known = map(os.strerror, errno.errorcode)
    return next((words for words in known if words in text), text[:200])


def _read(folder: Path, **like: Any) -> Any:
    targets = {
        name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
        for name, tree in like.items()
    }
    with _checkpointer(*like) as checkpointer:
        return checkpointer.restore(folder, ocp.args.Composite(**targets))


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
    return f"{TEMPORARY}.orbax-checkpoint" not in record.getMessage()
