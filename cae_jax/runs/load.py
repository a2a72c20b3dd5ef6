"""Opens a trained run."""

import contextlib
import logging
from pathlib import Path

from flax import nnx

from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.models import autoencoders, topology
from cae_jax.models.inference import Autoencoder
from cae_jax.ops.backend import choose
from cae_jax.runs import pretrained
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.folder import checkpoint_folder, read_config

logger = logging.getLogger(__name__)
_ATTEMPTS = 5  # a training process may remove a checkpoint while it is read


def load(run: str | Path, *, best: bool = False, backend: str = "auto") -> Autoencoder:
    """Opens the autoencoder of a run, even while the run is training.

    Args:
        run: directory written by `cae_jax.fit`, such as ``runs/fashion_mnist``; or a model that
            ships with the package, such as ``pretrained/fashion_mnist``.
        best: load the checkpoint with the lowest ``val_loss`` instead of the newest one.
        backend: how the network is computed, see `cae_jax.ops.backend.choose`.

    Raises:
        UserError: not a run directory, no intact checkpoint, or an unavailable backend.
    """
    run = pretrained.locate(run)
    config = read_config(run)
    chosen = choose(topology.from_config(config), backend)
    if (params := pretrained.read_params(run)) is not None:
        return Autoencoder(config, autoencoders.build_with(config, params), chosen)
    model = autoencoders.build(config, nnx.Rngs(0))
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            nnx.update(model, _read_params(run, config, best, nnx.state(model, nnx.Param)))
            return Autoencoder(config, model, chosen)
    raise UserError(
        f"the checkpoints of {run} are replaced faster than they can be read; wait and try again"
    )


def _read_params(run: Path, config: TrainConfig, best: bool, like: nnx.State) -> nnx.State:
    """Reads the parameters of the newest or best intact checkpoint.

    Raises:
        FileNotFoundError: it was removed in the meantime.
    """
    with Checkpoints(checkpoint_folder(run), config) as checkpoints:
        found, damage = checkpoints.find(best=best)
        if found is None:
            raise UserError(f"run {run} has no checkpoint yet; train it for at least one epoch")
        for problem in damage.values():
            logger.warning("%s: taking step %d instead", problem, found.step)
        try:
            return checkpoints.restore_params(found.step, like)
        except UserError:
            if found in checkpoints:
                raise
            raise FileNotFoundError(found.step) from None
