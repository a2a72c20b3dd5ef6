"""A trained autoencoder on NumPy images."""

import contextlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.ops import backend
from cae_jax.runs.checkpoints import open_checkpoints
from cae_jax.runs.folder import checkpoint_folder, read_config

# The most images that go to the device at once. With twice as many the phase form on a CPU takes
# twice as long for an image; the native step keeps its cache in order by itself, and a call costs.
MAX_BATCH, _MAX_BATCH_FUSED = 256, 4096
# To read a checkpoint before the trainer that is still at work removes it.
_TRIES = 5


class Autoencoder:
    """A trained autoencoder: `encode`, `decode` and `reconstruct`.

    Images may be uint8, or floats in [0, 1], of shape ``[N, 28, 28]`` or ``[N, 28, 28, 1]`` with
    any N including 0. Results are float32 NumPy arrays. At most 256 images, 4096 by the fused
    method, go to the device at once; each batch size is compiled once.

    Attributes:
        config: what it was trained with.
        model: the Flax NNX module with the trained parameters.
        code_shape: shape of one image's code.
        parameters: number of parameters.
    """

    def __init__(self, config: TrainConfig, model: autoencoders.Model):
        self.config = config
        self.model = model
        self.code_shape = autoencoders.code_shape(model)
        graphdef, self._params = nnx.split(model, nnx.Param)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._params))
        self._encode = jax.jit(lambda params, x: nnx.merge(graphdef, params).encode(x))
        self._decode = jax.jit(lambda params, x: nnx.sigmoid(nnx.merge(graphdef, params).decode(x)))
        self._logits = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x))
        self._reconstruct = jax.jit(lambda params, x: nnx.sigmoid(nnx.merge(graphdef, params)(x)))

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Codes ``[N, *code_shape]`` of images, each value at least 0."""
        return self._batched(self._encode, prepare_images(images), self.code_shape)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Images ``[N, 28, 28, 1]`` in [0, 1] of codes ``[N, *code_shape]``.

        Raises:
            UserError: codes of another shape, or not finite numbers.
        """
        codes = np.asarray(codes)
        if codes.shape[1:] != self.code_shape or codes.ndim == 0:
            raise UserError(
                f"codes have shape {list(codes.shape)}; this model takes "
                f"[N, {', '.join(map(str, self.code_shape))}], as its encode gives"
            )
        if not np.issubdtype(codes.dtype, np.floating) or not np.isfinite(codes).all():
            raise UserError(f"codes ({codes.dtype}) must be finite floats, as encode gives")
        return self._batched(self._decode, codes.astype(np.float32), autoencoders.IMAGE_SHAPE)

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Images ``[N, 28, 28, 1]`` in [0, 1]: those given, through the code and back."""
        return self._batched(self._reconstruct, prepare_images(images), autoencoders.IMAGE_SHAPE)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """What `reconstruct` gives before the sigmoid: ``[N, 28, 28, 1]``, unbounded."""
        return self._batched(self._logits, prepare_images(images), autoencoders.IMAGE_SHAPE)

    def _batched(
        self, function: Callable, inputs: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        outputs = [np.zeros((0, *shape), np.float32)]
        most = _MAX_BATCH_FUSED if autoencoders.is_fused(self.model) else MAX_BATCH
        for start in range(0, len(inputs), most):
            outputs.append(function(self._params, jnp.asarray(inputs[start : start + most])))
        return np.concatenate([np.asarray(output) for output in outputs])


def prepare_images(images: np.ndarray) -> np.ndarray:
    """Images as the models take them: uint8, or float32 in [0, 1], ``[N, 28, 28, 1]``.

    Args:
        images: uint8, or floats in [0, 1], ``[N, 28, 28]`` or ``[N, 28, 28, 1]``.

    Raises:
        UserError: another shape or type, values outside [0, 1] or not finite.
    """
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[1:] != autoencoders.IMAGE_SHAPE:
        raise UserError(
            f"images have shape {list(images.shape)}; "
            "they take [N, 28, 28] or [N, 28, 28, 1], gray and 28 x 28 pixels"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images are {images.dtype}; they take uint8, or floats in [0, 1]")
    low, high = (images.min(), images.max()) if images.size else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= 1):
        raise UserError(
            f"float images lie in [{low:g}, {high:g}]; they take finite values in [0, 1]: "
            "divide by their white, or give uint8"
        )
    return images.astype(np.float32)


def load(run: str | Path, *, best: bool = False, method: str = "auto") -> Autoencoder:
    """The autoencoder of a run, also while it is being trained.

    Args:
        run: folder that training wrote, such as ``runs/fashion_mnist``.
        best: take the checkpoint of the lowest ``val_loss`` instead of the newest one.
        method: how the network is computed, see `cae_jax.ops.backend`.

    Raises:
        UserError: no such run, or one without a checkpoint.
    """
    run = Path(run)
    config = read_config(run)
    model = autoencoders.build(config, nnx.Rngs(0), backend.choose(config, method).method)
    for _ in range(_TRIES):
        # The training that goes on may remove a checkpoint while it is read.
        with contextlib.suppress(FileNotFoundError):
            nnx.update(model, _read_params(run, config, best, nnx.state(model, nnx.Param)))
            return Autoencoder(config, model)
    raise UserError(f"run {run} is trained too fast to read a checkpoint of it; wait and try again")


def _read_params(run: Path, config: TrainConfig, best: bool, like: nnx.State) -> nnx.State:
    """The parameters of the newest or best intact checkpoint.

    Raises:
        FileNotFoundError: it was removed meanwhile.
    """
    with open_checkpoints(checkpoint_folder(run), config) as checkpoints:
        found, damage = checkpoints.find(best=best)
        if found is None:
            raise UserError(f"run {run} has no checkpoint yet; train it for at least one epoch")
        for what in damage.values():
            print(f"{what}: taking step {found.step} instead", file=sys.stderr)
        try:
            return checkpoints.restore_params(found.step, like)
        except UserError:
            if found in checkpoints:
                raise
            raise FileNotFoundError(found.step) from None
