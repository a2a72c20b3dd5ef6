"""The lab's convolutional autoencoder and the two fully connected ones it is compared with.

All models map images ``[N, 28, 28, 1]``, uint8 or float32 in [0, 1], to a code (`encode`) and a
code to logits ``[N, 28, 28, 1]`` (`decode`); the sigmoid of the logits is the image.
`cae_jax.ops` has the ways to compute them; the parameters and, up to rounding, the results are the
same for all.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.ops import matmul, xla
from cae_jax.ops import native as native_kernel

IMAGE_SHAPE = (28, 28, 1)

# Keras's defaults for Conv2D and Dense, so that training starts where the lab's started.
_KERNEL_INIT = nnx.initializers.glorot_uniform()
_BIAS_INIT = nnx.initializers.zeros_init()


class Layer(NamedTuple):
    """One row of the layer table: Keras's name of the type, the output shape without batch."""

    name: str
    type: str
    shape: tuple[int, ...]
    parameters: int


class ConvAutoencoder(nnx.Module):
    """The lab's network: 28 x 28 pixels to a 4 x 4 x 8 code and back, 4,385 parameters.

    Args:
        features: of the three encoder convolutions; the decoder mirrors them.
        method: how it is computed, see `cae_jax.ops.backend`; the parameters are the same for all.
        rngs: stream ``params`` draws the kernels.
    """

    def __init__(
        self,
        features: tuple[int, int, int] = (16, 8, 8),
        *,
        method: str = "phase",
        rngs: nnx.Rngs,
    ):
        self.method = method
        f1, f2, f3 = features
        self.conv1 = _conv(1, f1, rngs)
        self.conv2 = _conv(f1, f2, rngs)
        self.conv3 = _conv(f2, f3, rngs)
        self.conv4 = _conv(f3, f3, rngs)
        self.conv5 = _conv(f3, f2, rngs)
        self.conv6 = _conv(f2, f1, rngs, padding="VALID")
        self.conv7 = _conv(f1, 1, rngs)

    def encode(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """Images ``[N, 28, 28, 1]`` to codes ``[N, 4, 4, features[2]]``, at least 0."""
        _check_shape(x_NxHxWxC)
        if is_fused(self):
            return self._native(native_kernel.encode, ConvAutoencoder._encode, x_NxHxWxC)
        return self._encode(x_NxHxWxC)

    def decode(self, code_NxHxWxC: jax.Array) -> jax.Array:
        """Codes ``[N, 4, 4, features[2]]`` to logits ``[N, 28, 28, 1]``."""
        if is_fused(self):
            return self._native(native_kernel.decode, ConvAutoencoder._decode, code_NxHxWxC)
        return self._decode(code_NxHxWxC)

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """Images ``[N, 28, 28, 1]`` to logits of the same shape."""
        return self.decode(self.encode(x_NxHxWxC))

    def _encode(self, x: jax.Array) -> jax.Array:
        form = xla if self.method == "conv" else matmul
        x = nnx.relu(form.conv_pool(scale(x), *_weights(self.conv1)))  # 28 -> 14
        x = nnx.relu(form.conv_pool(x, *_weights(self.conv2)))  # 14 -> 7
        return nnx.relu(form.conv_pool(x, *_weights(self.conv3)))  # 7 -> 4

    def _decode(self, x: jax.Array) -> jax.Array:
        form = xla if self.method == "conv" else matmul
        x = nnx.relu(form.conv(x, *_weights(self.conv4)))  # 4
        x = nnx.relu(form.upsample_conv(x, *_weights(self.conv5)))  # 4 -> 8
        x = nnx.relu(form.upsample_conv(x, *_weights(self.conv6), padding="valid"))  # 8->16->14
        return form.upsample_conv(x, *_weights(self.conv7))  # 14 -> 28

    def _native(self, native: Callable, layers: Callable, x: jax.Array) -> jax.Array:
        graphdef, params = nnx.split(self, nnx.Param)
        return native_kernel.differentiable(
            native, lambda params, x: layers(nnx.merge(graphdef, params), x), params, x
        )

    def layers(self) -> list[Layer]:
        """The rows of the layer table, pooling and upsampling included."""
        rows = [Layer("input", "InputLayer", IMAGE_SHAPE, 0)]

        def conv(name: str, size: int) -> None:
            kernel, bias = _weights(getattr(self, name))
            rows.append(Layer(name, "Conv2D", (size, size, bias.size), kernel.size + bias.size))

        def resize(name: str, kind: str, size: int) -> None:
            rows.append(Layer(name, kind, (size, size, rows[-1].shape[-1]), 0))

        for i, (size, pooled) in enumerate([(28, 14), (14, 7), (7, 4)], start=1):
            conv(f"conv{i}", size)
            resize(f"pool{i}", "MaxPooling2D", pooled)
        conv("conv4", 4)
        for i, (upsampled, size) in enumerate([(8, 8), (16, 14), (28, 28)], start=1):
            resize(f"upsample{i}", "UpSampling2D", upsampled)
            conv(f"conv{i + 4}", size)
        return rows


class DenseAutoencoder(nnx.Module):
    """A fully connected autoencoder; ``widths`` lead to the code, the decoder mirrors them.

    Args:
        widths: hidden layers up to and with the code: ``(32,)`` is the simple autoencoder
            784-32-784, ``(128, 64, 32)`` the deep one 784-128-64-32-64-128-784.
        rngs: stream ``params`` draws the kernels.
    """

    def __init__(self, widths: tuple[int, ...], *, rngs: nnx.Rngs):
        sizes = (784, *widths, *widths[-2::-1], 784)
        self.depth = len(widths)
        for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
            layer = nnx.Linear(
                n_in, n_out, kernel_init=_KERNEL_INIT, bias_init=_BIAS_INIT, rngs=rngs
            )
            setattr(self, f"dense{i}", layer)

    def encode(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """Images ``[N, 28, 28, 1]`` to codes ``[N, widths[-1]]``, at least 0."""
        _check_shape(x_NxHxWxC)
        x = scale(x_NxHxWxC).reshape(-1, 784)
        for i in range(1, self.depth + 1):
            x = nnx.relu(getattr(self, f"dense{i}")(x))
        return x

    def decode(self, code_NxC: jax.Array) -> jax.Array:
        """Codes ``[N, widths[-1]]`` to logits ``[N, 28, 28, 1]``."""
        x = code_NxC
        for i in range(self.depth + 1, 2 * self.depth):
            x = nnx.relu(getattr(self, f"dense{i}")(x))
        return getattr(self, f"dense{2 * self.depth}")(x).reshape(-1, *IMAGE_SHAPE)

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """Images ``[N, 28, 28, 1]`` to logits of the same shape."""
        return self.decode(self.encode(x_NxHxWxC))

    def layers(self) -> list[Layer]:
        """The rows of the layer table."""
        rows = [Layer("input", "InputLayer", (784,), 0)]
        for i in range(1, 2 * self.depth + 1):
            kernel, bias = _weights(getattr(self, f"dense{i}"))
            rows.append(Layer(f"dense{i}", "Dense", (bias.size,), kernel.size + bias.size))
        return rows


Model = ConvAutoencoder | DenseAutoencoder


def build(config: TrainConfig, rngs: nnx.Rngs, method: str = "phase") -> Model:
    """The network that a config asks for, freshly initialised, computed by a method."""
    if config.model == "conv":
        return ConvAutoencoder(config.features, method=method, rngs=rngs)
    return DenseAutoencoder({"simple": (32,), "deep": (128, 64, 32)}[config.model], rngs=rngs)


def is_fused(model: Model) -> bool:
    """Whether the native step of `cae_jax.ops.native` computes the model."""
    return isinstance(model, ConvAutoencoder) and model.method == "fused"


def scale(images: jax.Array) -> jax.Array:
    """Pixels as float32 in [0, 1]; uint8 is divided by 255."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def code_shape(model: Model) -> tuple[int, ...]:
    """The shape of one image's code."""
    images = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32)
    return jax.eval_shape(model.encode, images).shape[1:]


def _conv(n_in: int, n_out: int, rngs: nnx.Rngs, padding: str = "SAME") -> nnx.Conv:
    return nnx.Conv(
        n_in,
        n_out,
        kernel_size=(3, 3),
        padding=padding,
        kernel_init=_KERNEL_INIT,
        bias_init=_BIAS_INIT,
        rngs=rngs,
    )


def _weights(layer: nnx.Conv | nnx.Linear) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias; the layers hold them, `phase` computes with them."""
    assert layer.bias is not None
    return layer.kernel[...], layer.bias[...]


def _check_shape(x: jax.Array) -> None:
    if x.shape[1:] != IMAGE_SHAPE:
        raise UserError(
            f"images have shape {list(x.shape)}; the network takes [N, 28, 28, 1]: "
            "resize or crop them to 28 x 28 gray pixels"
        )
