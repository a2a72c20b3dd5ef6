"""The Keras tutorial's convolutional autoencoder, and fully connected ones for comparison.

All models map images ``[N, height, width, channels]``, uint8 or float32 in [0, 1], to a code
(`encode`) and a code to logits of the images' shape (`decode`); the sigmoid of the logits is the
reconstruction. The modules hold the parameters. Each call is passed the implementation of the
layers: a module such as `cae_jax.ops.xla`, which equals the others up to rounding.

The code of a quantised network is whole numbers. Its `latents` are the same before they are
rounded, and its `density` has the probabilities of the whole numbers.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.models import topology
from cae_jax.models.density import Density
from cae_jax.models.topology import IMAGE_SHAPE, Layer, Topology
from cae_jax.ops import matmul
from cae_jax.ops.backend import MATMUL, Backend


def scale(images: jax.Array) -> jax.Array:
    """Converts pixels to float32 in [0, 1]; uint8 is divided by 255."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


class ConvAutoencoder(nnx.Module):
    """The tutorial's network: convolutions with pooling, then convolutions with upsampling.

    With the defaults: 28 x 28 pixels to a 4 x 4 x 8 code and back, 4,385 parameters.

    Args:
        features: of the encoder's convolutions, one pooling stage each; the decoder mirrors them.
        image_shape: ``(height, width, channels)``.
        quantised: whether its code is whole numbers.
        rngs: the stream ``params`` initialises the kernels.
    """

    density: Density | None = None

    def __init__(
        self,
        features: Sequence[int] = (16, 8, 8),
        image_shape: tuple[int, int, int] = IMAGE_SHAPE,
        quantised: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.features, self.image_shape = tuple(features), image_shape
        _initialise(self, topology.convolutional(image_shape, features, quantised), rngs)

    @property
    def topology(self) -> Topology:
        """The table of its layers."""
        return topology.convolutional(self.image_shape, self.features, self.density is not None)

    def encode(self, x_NxHxWxC: jax.Array, ops: Any = matmul) -> jax.Array:
        """Images ``[N, *image_shape]`` to codes ``[N, *code_shape]``: at least 0, or whole."""
        return _rounded(self, self.latents(x_NxHxWxC, ops))

    def latents(self, x_NxHxWxC: jax.Array, ops: Any = matmul) -> jax.Array:
        """As `encode`, not rounded."""
        return self._encode(x_NxHxWxC, self._weights(slice(len(self.features)), ops), ops)

    def decode(self, code_NxHxWxC: jax.Array, ops: Any = matmul) -> jax.Array:
        """Codes ``[N, *code_shape]`` to logits ``[N, *image_shape]``."""
        return self._decode(code_NxHxWxC, self._weights(slice(len(self.features), None), ops), ops)

    def __call__(self, x_NxHxWxC: jax.Array, ops: Any = matmul) -> jax.Array:
        """Images ``[N, *image_shape]`` to logits of the same shape."""
        weights = self._weights(slice(None), ops)
        code = _rounded(self, self._encode(x_NxHxWxC, weights[: len(self.features)], ops))
        return self._decode(code, weights[len(self.features) :], ops)

    def _weights(self, part: slice, ops: Any) -> list[Any]:
        """The weights of some layers, as prepared by `ops`."""
        depth = len(self.features)
        functions = ["conv_pool"] * depth + ["conv"] + ["upsample_conv"] * depth
        layers = []
        for function, layer in zip(functions, self.topology.weighted, strict=True):
            module = getattr(self, layer.name)
            layers.append((function, module.kernel[...], module.bias[...]))
        return ops.prepare(layers[part])

    def _encode(self, x: jax.Array, weights: list[Any], ops: Any) -> jax.Array:
        _check_shape(x, self.image_shape)
        x = scale(x)
        for each in weights[:-1]:  # 28 -> 14 -> 7
            x = nnx.relu(ops.conv_pool(x, each))
        x = ops.conv_pool(x, weights[-1])  # 7 -> 4
        return nnx.relu(x) if self.density is None else x

    def _decode(self, x: jax.Array, weights: list[Any], ops: Any) -> jax.Array:
        first, *others = weights
        x = ops.conv(x, first)
        upsampling = self.topology.weighted[len(self.features) + 1 :]
        for layer, each in zip(upsampling, others, strict=True):  # 4 -> 8, 8 -> 16 -> 14, 14 -> 28
            x = ops.upsample_conv(nnx.relu(x), each, padding=layer.padding)
        height, width, _ = self.image_shape
        return x[:, :height, :width]


class DenseAutoencoder(nnx.Module):
    """A fully connected autoencoder; every layer is a matmul, in the precision of the `ops`.

    Args:
        model: ``"simple"`` (pixels-32-pixels) or ``"deep"`` (pixels-128-64-32-64-128-pixels), with
            a pixel for each value of an image.
        image_shape: ``(height, width, channels)``.
        widths: of other layers up to the code, see `TrainConfig.widths`.
        quantised: whether its code is whole numbers.
        rngs: the stream ``params`` initialises the kernels.
    """

    density: Density | None = None

    def __init__(
        self,
        model: str,
        image_shape: tuple[int, int, int] = IMAGE_SHAPE,
        widths: tuple[int, ...] | None = None,
        quantised: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.model, self.image_shape, self.widths = model, image_shape, widths
        _initialise(self, topology.dense(image_shape, model, widths, quantised), rngs)

    @property
    def topology(self) -> Topology:
        """The table of its layers."""
        quantised = self.density is not None
        return topology.dense(self.image_shape, self.model, self.widths, quantised)

    def encode(self, x_NxHxWxC: jax.Array, ops: Any = matmul) -> jax.Array:
        """Images ``[N, *image_shape]`` to codes ``[N, *code_shape]``: at least 0, or whole."""
        return _rounded(self, self.latents(x_NxHxWxC, ops))

    def latents(self, x_NxHxWxC: jax.Array, ops: Any = matmul) -> jax.Array:
        """As `encode`, not rounded."""
        _check_shape(x_NxHxWxC, self.image_shape)
        x = scale(x_NxHxWxC).reshape(-1, *self.topology.layers[0].shape)
        for layer in self.topology.encoder:
            x = self._layer(layer, x, ops)
            x = nnx.relu(x) if layer.activation == "relu" else x
        return x

    def decode(self, code_NxC: jax.Array, ops: Any = matmul) -> jax.Array:
        """Codes ``[N, *code_shape]`` to logits ``[N, *image_shape]``."""
        *hidden, last = self.topology.decoder
        x = code_NxC
        for layer in hidden:
            x = nnx.relu(self._layer(layer, x, ops))
        return self._layer(last, x, ops).reshape(-1, *self.image_shape)

    def __call__(self, x_NxHxWxC: jax.Array, ops: Any = matmul) -> jax.Array:
        """Images ``[N, *image_shape]`` to logits of the same shape."""
        return self.decode(self.encode(x_NxHxWxC, ops), ops)

    def _layer(self, layer: Layer, x: jax.Array, ops: Any) -> jax.Array:
        module = getattr(self, layer.name)
        return ops.dense(x, module.kernel[...], module.bias[...])


Model = ConvAutoencoder | DenseAutoencoder
# A function of parameters and images or codes.
Pass = Callable[[nnx.State, jax.Array], jax.Array]


def build(config: TrainConfig, rngs: nnx.Rngs) -> Model:
    """Builds and initialises the model described by `config`."""
    network = topology.from_config(config)
    if config.model == "conv":
        return ConvAutoencoder(network.features, network.image_shape, network.quantised, rngs=rngs)
    return DenseAutoencoder(
        config.model, network.image_shape, config.widths, network.quantised, rngs=rngs
    )


def fingerprint(model: Model) -> bytes:
    """SHA-256 of the parameters, 32 bytes: their names, shapes and values."""
    digest = hashlib.sha256()
    leaves = jax.tree.flatten_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))[0]
    for path, leaf in leaves:
        values = np.asarray(leaf, "<f4")
        digest.update(f"{jax.tree_util.keystr(path)} {values.shape} ".encode())
        digest.update(values.tobytes())
    return digest.digest()


def abstract(config: TrainConfig) -> Model:
    """Builds the model described by `config` with `jax.ShapeDtypeStruct` as parameters."""
    return nnx.eval_shape(lambda: build(config, nnx.Rngs(0)))


def build_with(config: TrainConfig, parameters: dict[str, Any]) -> Model:
    """Builds the model described by `config` from parameters nested by layer and name."""
    model = abstract(config)  # drawing values takes longer than reading them
    params = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(params, jax.tree.map(jnp.asarray, parameters))
    nnx.update(model, params)
    return model


class Passes(NamedTuple):
    """Functions of parameters and arrays, to be jitted.

    Attributes:
        encode: images to codes.
        decode: codes to images in [0, 1].
        reconstruct: images to images in [0, 1].
        logits: images to logits.
    """

    encode: Pass
    decode: Pass
    reconstruct: Pass
    logits: Pass


def make_passes(graphdef: nnx.GraphDef, backend: Backend = MATMUL) -> Passes:
    """Makes the functions of a model on a backend."""

    def part(entry: str, params: nnx.State, x: jax.Array) -> jax.Array:
        def reference(params: nnx.State, x: jax.Array) -> jax.Array:
            return getattr(nnx.merge(graphdef, params), entry)(x, backend.layers)

        return backend.call(entry, reference, params, x)

    encode, decode = functools.partial(part, "encode"), functools.partial(part, "decode")
    return Passes(
        encode,
        decode=lambda params, code: nnx.sigmoid(decode(params, code)),
        reconstruct=lambda params, x: nnx.sigmoid(decode(params, encode(params, x))),
        logits=lambda params, x: decode(params, encode(params, x)),
    )


def _draw_kernel(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draws from Glorot's uniform distribution, Keras's default for Conv2D and Dense.

    The bits equal those of `nnx.initializers.glorot_uniform`, but drawing a flat array compiles in
    0.2 s on a CPU, and one of four dimensions in up to 5 s.
    """
    *window, n_in, n_out = shape
    variance = jnp.asarray(2 / (math.prod(window) * (n_in + n_out)), dtype)
    flat = jax.random.uniform(key, (math.prod(shape),), dtype, minval=-1)
    return flat.reshape(shape) * jnp.sqrt(3 * variance)


def _initialise(model: Model, network: Topology, rngs: nnx.Rngs) -> None:
    """Sets the layers of a model, and the density of a quantised code."""
    for layer in network.weighted:
        setattr(model, layer.name, _initialised(layer, rngs))
    if network.quantised:
        model.density = Density(network.code_shape[-1], rngs=rngs)
        if network.model != "conv":
            for part in (network.encoder, network.decoder):
                if len(part) == 1:
                    continue  # which is linear
                _add_linear_path([getattr(model, layer.name) for layer in part])


def _add_linear_path(layers: Sequence[Any]) -> None:
    """Lets ReLU layers begin with a linear map from the first to the last one, of half their width.

    Two units each pass a value: a = relu(a) - relu(-a). The other units keep their initial weights.
    Small differences between codes, for which training otherwise takes epochs, reach the pixels at
    once.
    """
    *hidden, last = [layer.kernel[...] for layer in layers]
    rank = min(len(hidden[0]), last.shape[1], *(kernel.shape[1] // 2 for kernel in hidden))
    passed = jnp.eye(rank)
    # What the narrow end begins with or ends in is the identity, so that the wide end is the map.
    narrows = len(hidden[0]) > last.shape[1]
    first = hidden[0][:, :rank] if narrows else jnp.eye(len(hidden[0]), rank)
    final = jnp.eye(rank, last.shape[1]) if narrows else last[:rank]
    both = jnp.block([[passed, -passed], [-passed, passed]])
    signs = jnp.array([[1.0, -1.0]])
    for i, (layer, kernel) in enumerate(zip(layers, hidden, strict=False)):
        paired = jnp.kron(signs, first)
        if i:
            paired = jnp.zeros((len(kernel), 2 * rank)).at[: 2 * rank].set(both)
        layer.kernel[...] = kernel.at[:, : 2 * rank].set(paired)
    layers[-1].kernel[...] = last.at[: 2 * rank].set(jnp.kron(signs.T, final))


def _rounded(model: Model, latents: jax.Array) -> jax.Array:
    """The code of a model."""
    return latents if model.density is None else jnp.round(latents)


def _initialised(layer: Layer, rngs: nnx.Rngs) -> nnx.Conv | nnx.Linear:
    """Builds and initialises a layer; biases are 0, as in Keras."""
    assert layer.kernel is not None
    *window, n_in, n_out = layer.kernel
    make = functools.partial(nnx.Conv, kernel_size=tuple(window)) if window else nnx.Linear
    return make(n_in, n_out, kernel_init=_draw_kernel, rngs=rngs)


def _check_shape(x: jax.Array, image_shape: tuple[int, int, int]) -> None:
    if x.shape[1:] != image_shape:
        height, width, channels = image_shape
        raise UserError(
            f"images have shape {list(x.shape)}; the network takes [N, {height}, {width}, "
            f"{channels}]: resize or crop them to {height} x {width} pixels"
        )
