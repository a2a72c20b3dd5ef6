"""Compares the kernels with another form of the network on the device, before they are used."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = 1e-4  # of the loss and of each gradient's norm, in float32
_IMAGES = 8


def difference(kernel: Any, network: Any, layers: Any, seed: int = 0) -> float:
    """How far loss and gradient of one batch differ, relative to their size.

    Args:
        kernel: has ``bce_and_grad``.
        network: its `cae_jax.models.topology.Topology`.
        layers: see `cae_jax.ops.backend.Backend.layers`.
        seed: draws images and parameters.
    """
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (_IMAGES, *network.image_shape), np.uint8)
    weights = rng.uniform(0.5, 1, _IMAGES).astype(np.float32)
    params = {layer.name: _draw(layer, rng) for layer in network.weighted}

    def loss(params: Any) -> jax.Array:
        x = images.astype(np.float32) / 255
        z = _logits(params, jnp.asarray(x), network, layers)
        bce = jnp.maximum(z, 0) - z * x + jnp.log1p(jnp.exp(-jnp.abs(z)))
        return (bce.mean((1, 2, 3)) * weights).sum() / weights.sum()

    with jax.default_matmul_precision("highest"):
        expected = jax.jit(jax.value_and_grad(loss))(params)
    found = jax.jit(kernel.bce_and_grad)(params, images, images, weights)
    pairs = zip(*map(jax.tree.leaves, jax.device_get((found, expected))), strict=True)
    distances = [np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6) for a, b in pairs]
    return float(np.max(distances))  # a number that is none stays so


def _draw(layer: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters with which activations keep their size, and few units are dead."""
    *window, n_in, n_out = layer.kernel
    scale = (2 / (np.prod(window) * n_in)) ** 0.5
    kernel = rng.normal(scale=scale, size=layer.kernel)
    bias = rng.uniform(0, 0.2, n_out)
    return {"bias": bias.astype(np.float32), "kernel": kernel.astype(np.float32)}


def _logits(params: Any, x: jax.Array, network: Any, layers: Any) -> jax.Array:
    depth = len(network.features)
    functions = ["conv_pool"] * depth + ["conv"] + ["upsample_conv"] * depth
    values = [params[layer.name] for layer in network.weighted]
    named = zip(functions, values, strict=True)
    weights = layers.prepare([(name, each["kernel"], each["bias"]) for name, each in named])
    for i, (layer, name) in enumerate(zip(network.weighted, functions, strict=True)):
        options = {"padding": layer.padding} if name == "upsample_conv" else {}
        x = getattr(layers, name)(jax.nn.relu(x), weights[i], **options)
    height, width, _ = network.image_shape
    return x[:, :height, :width]
