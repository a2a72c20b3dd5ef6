"""Creates a run that starts from the weights of a network that Keras has saved."""

from pathlib import Path

from flax import nnx

from cae_jax import data
from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.interop.keras import Weights, matching
from cae_jax.models import autoencoders
from cae_jax.ops.backend import MATMUL
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.folder import checkpoint_folder, open_folder, write_config
from cae_jax.training.trainer import Validation, initial_state


def import_run(
    weights: Weights,
    config: TrainConfig,
    workdir: str | Path,
    *,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    archives: str | Path | None = None,
) -> float:
    """Writes a run whose checkpoint of step 0 has the weights and a fresh optimizer.

    It can be loaded and evaluated, and ``fit`` with the same config continues from it.

    Args:
        weights: see `cae_jax.interop.keras.read`.
        config: of the training; its model and features are those of the weights.
        workdir: directory of the run.
        overwrite: replace an existing run.
        data_dir, archives: see `cae_jax.data.load_split`.

    Returns:
        val_loss, by which the checkpoint ranks among those of the training that follows.

    Raises:
        UserError: a config of another network, an existing run, unusable data or directory.
    """
    workdir = Path(workdir)
    if config != matching(config, weights):
        raise UserError(
            f"the config is of the model {config.model} with features {config.features}; the "
            f"weights are of {weights.model} with features {weights.features}"
        )
    if (workdir / "config.json").exists() and not overwrite:
        raise UserError(
            f"{workdir} holds a run; give another directory, or `overwrite=True` to replace it"
        )
    model = autoencoders.build(config, nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(params, weights.params)
    nnx.update(model, params)
    images = data.load(config, data_dir=data_dir, archives=archives)
    state = initial_state(config, model, len(images.train))
    val_loss, _ = Validation(config, model, MATMUL, images.test).evaluate(state.params)
    with open_folder(workdir, overwrite=overwrite):
        with Checkpoints(checkpoint_folder(workdir), config) as checkpoints:
            checkpoints.save(state, val_loss)
        # Last: a config alone would be taken for a run that starts from random parameters.
        write_config(workdir, config)
    return val_loss
