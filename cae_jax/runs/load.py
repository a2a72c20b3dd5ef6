"""Opens a trained run."""

import contextlib
import logging
from pathlib import Path

from flax import nnx

from cae_jax.errors import UserError
from cae_jax.models import autoencoders, topology
from cae_jax.models.inference import Autoencoder
from cae_jax.ops import settings
from cae_jax.ops.backend import choose
from cae_jax.runs import detectors, pretrained
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.folder import checkpoint_folder, read_config

logger = logging.getLogger(__name__)
_ATTEMPTS = 5  # a training process may remove a checkpoint while it is read


@settings.ours()
def load(run: str | Path, *, best: bool = False, backend: str = "auto") -> Autoencoder:
    """Opens the autoencoder of a run, even while the run is training.

    Args:
        run: directory written by `cae_jax.fit`, such as ``runs/fashion_mnist``; a model that ships
            with the package, such as ``pretrained/fashion_mnist``; or a folder of
            ``cae-jax export --format hub``.
        best: load the checkpoint with the lowest ``val_loss`` instead of the newest one.
        backend: how the network is computed, see `cae_jax.ops.backend.choose`.

    Raises:
        UserError: not a run directory, no intact checkpoint or weights, or an unavailable backend.
    """
    run = pretrained.locate(run)
    autoencoder = _load(run, best, backend)
    autoencoder.detector = detectors.read(run, autoencoder)
    return autoencoder


def _load(run: Path, best: bool, backend: str) -> Autoencoder:
    config = read_config(run)
    chosen = choose(topology.from_config(config), backend, precision=config.precision)
    if pretrained.is_model(run):
        shapes = nnx.to_pure_dict(nnx.state(autoencoders.abstract(config), nnx.Param))
        params = pretrained.read_params(run, shapes)
        return Autoencoder(config, autoencoders.build_with(config, params), chosen)
    model = autoencoders.build(config, nnx.Rngs(0))
    with Checkpoints(checkpoint_folder(run), config) as checkpoints:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                found, damage = checkpoints.find(best=best)
                if found is None:
                    raise UserError(f"run {run} has no checkpoint yet; train it for an epoch")
                for problem in damage.values():
                    logger.warning("%s: taking step %d instead", problem, found.step)
                params = checkpoints.restore(found.step, nnx.state(model, nnx.Param))
                nnx.update(model, params)
                return Autoencoder(config, model, chosen)
    raise UserError(
        f"the checkpoints of {run} are replaced faster than they can be read; wait and try again"
    )
