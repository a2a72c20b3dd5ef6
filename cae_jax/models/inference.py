"""A trained autoencoder as functions of NumPy images."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax.config import TrainConfig
from cae_jax.data.images import prepare_images
from cae_jax.errors import UserError
from cae_jax.models import autoencoders, topology
from cae_jax.ops.backend import MATMUL, Backend, choose

logger = logging.getLogger(__name__)


class Autoencoder:
    """A trained autoencoder: `encode`, `decode` and `reconstruct`.

    Images are uint8, bool (True is white), or floats in [0, 1], of shape ``[N, height, width]`` or
    ``[N, height, width, channels]`` with any N including 0. Results are float32 NumPy arrays. At
    most ``backend.max_batch`` images go to the device in one call; each batch size is compiled
    once. It can be pickled; loading chooses the same backend, or the default one without it.

    Attributes:
        config: the config that it was trained with.
        model: the Flax NNX module with the trained parameters.
        topology: the table of its layers.
        params: its parameters, an `nnx.State`.
    """

    def __init__(
        self, config: TrainConfig, model: autoencoders.Model, backend: Backend = MATMUL
    ) -> None:
        self.config = config
        self.model = model
        self.topology = topology.of_config(config)
        self._image_shape = self.topology.image_shape
        graphdef, self.params = nnx.split(model, nnx.Param)
        self._backend = backend
        self._passes = autoencoders.Passes(
            *map(jax.jit, autoencoders.make_passes(graphdef, backend))
        )

    def with_params(self, config: TrainConfig, params: nnx.State) -> "Autoencoder":
        """The same network with other parameters, and without compiling it again."""
        other = object.__new__(type(self))  # a copy by `copy` would be pickled
        vars(other).update(vars(self), config=config, params=params)
        other.model = nnx.merge(nnx.graphdef(self.model), params)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # Compiled programs and the native kernel belong to this process.
        params = jax.tree.map(np.asarray, nnx.to_pure_dict(self.params))
        return {"config": self.config, "params": params, "backend": self._backend.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        config, name = state["config"], state["backend"]
        model = autoencoders.build_with(config, state["params"])
        network = topology.of_config(config)
        try:
            backend = choose(network, name)
        except UserError:  # pickled on another machine
            backend = choose(network)
            taken = f"{backend.name}: {backend.reason}"
            logger.warning("Pickled with %s, loaded with %s", name, taken)
        self.__init__(config, model, backend)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.topology.parameters

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of one image's code."""
        return self.topology.code_shape

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Codes ``[N, *code_shape]`` of images, each value at least 0."""
        return self._batched(self._passes.encode, self._prepared(images), self.code_shape)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Images ``[N, *image_shape]`` in [0, 1] of codes ``[N, *code_shape]``.

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
        return self._batched(self._passes.decode, codes.astype(np.float32), self._image_shape)

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Images ``[N, *image_shape]`` in [0, 1]: those given, encoded and decoded."""
        return self._batched(self._passes.reconstruct, self._prepared(images), self._image_shape)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The output of `reconstruct` before the sigmoid: ``[N, *image_shape]``, unbounded."""
        return self._batched(self._passes.logits, self._prepared(images), self._image_shape)

    def _prepared(self, images: np.ndarray) -> np.ndarray:
        return prepare_images(images, self._image_shape)

    def _batched(
        self, function: Callable, inputs: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        outputs = [np.zeros((0, *shape), np.float32)]
        for start in range(0, len(inputs), self._backend.max_batch):
            batch = jnp.asarray(inputs[start : start + self._backend.max_batch])
            outputs.append(function(self.params, batch))
        return np.concatenate([np.asarray(output) for output in outputs])
