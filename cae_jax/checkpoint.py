"""Saving and restoring of training states: the one module that knows Orbax."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint.checkpoint_managers import preservation_policy

from cae_jax.errors import UserError
from cae_jax.train import TrainState

KEEP_NEWEST = 3


class Checkpoints:
    """The checkpoints of one run: the newest three and the one of the lowest ``val_loss``.

    A checkpoint is named after its step and holds two items: the parameters, and what only
    training needs. Saving is asynchronous and atomic; `close` waits for it.

    Args:
        folder: is created unless ``read_only``.
        read_only: open for restoring only; nothing is created or cleaned up.
    """

    def __init__(self, folder: str | Path, *, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every save at WARNING
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=_val_loss,  # without it Orbax would not write the metric
                best_mode="min",
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [
                        preservation_policy.LatestN(KEEP_NEWEST),
                        # reverse: the lowest is the best
                        preservation_policy.BestN(get_metric_fn=_val_loss, reverse=True, n=1),
                    ]
                ),
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
            item_names=("params", "training"),
        )

    def save(self, state: TrainState, val_loss: float) -> None:
        """Starts to save a state and its metric; the state may be donated afterwards."""
        # A copy: on the CPU the saving thread would read the very buffers that the next step
        # writes to.
        state = jax.tree.map(np.array, state)
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(nnx.to_pure_dict(state.params)),
                training=ocp.args.StandardSave(_training_part(state)),
            ),
            metrics={"val_loss": val_loss},
        )

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the lowest ``val_loss``, None if there is none."""
        return self._manager.best_step()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The whole state at a step; `like` gives its structure."""
        items = self._restore(
            step,
            params=nnx.to_pure_dict(like.params),
            training=_training_part(like),
        )
        training = items["training"]
        return TrainState(
            _to_state(like.params, items["params"]), training["opt_state"], training["step"]
        )

    def restore_params(self, step: int, like: nnx.State) -> nnx.State:
        """The parameters at a step; `like` gives their structure."""
        return _to_state(like, self._restore(step, params=nnx.to_pure_dict(like))["params"])

    def _restore(self, step: int, **like: Any) -> Any:
        targets = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
            for name, tree in like.items()
        }
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**targets))
        except Exception as error:  # Orbax and TensorStore raise all kinds
            raise UserError(
                f"checkpoint {self.folder / str(step)} cannot be restored "
                f"({' '.join(str(error).split())[:200]}); delete that folder to go back to the one "
                "before, or start anew with --overwrite"
            ) from error

    def close(self) -> None:
        """Waits until all saves are on disk."""
        self._manager.close()


@contextlib.contextmanager
def open_checkpoints(folder: str | Path, *, read_only: bool = False) -> Iterator[Checkpoints]:
    """`Checkpoints` for a ``with`` statement."""
    checkpoints = Checkpoints(folder, read_only=read_only)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def _val_loss(metrics: dict[str, float]) -> float:
    return metrics["val_loss"]


def _training_part(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step}


def _to_state(like: nnx.State, values: dict[str, Any]) -> nnx.State:
    # A copy, because replacing writes into the State it is given.
    state = jax.tree.map(lambda leaf: leaf, like)
    nnx.replace_by_pure_dict(state, values)
    return state
