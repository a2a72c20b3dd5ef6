"""Topology, sizes and initial values against the lab's table and a plain form of the network."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import cae_jax
from cae_jax.models import autoencoders
from cae_jax.models.summary import layer_table
from cae_jax.ops import xla

# The lab's table: type, output shape, parameters.
LAB = """
InputLayer (None, 28, 28, 1) 0
Conv2D (None, 28, 28, 16) 160
MaxPooling2D (None, 14, 14, 16) 0
Conv2D (None, 14, 14, 8) 1160
MaxPooling2D (None, 7, 7, 8) 0
Conv2D (None, 7, 7, 8) 584
MaxPooling2D (None, 4, 4, 8) 0
Conv2D (None, 4, 4, 8) 584
UpSampling2D (None, 8, 8, 8) 0
Conv2D (None, 8, 8, 8) 584
UpSampling2D (None, 16, 16, 8) 0
Conv2D (None, 14, 14, 16) 1168
UpSampling2D (None, 28, 28, 16) 0
Conv2D (None, 28, 28, 1) 145
""".strip().splitlines()


@functools.cache
def build(**values):
    return autoencoders.build(cae_jax.TrainConfig(**values), nnx.Rngs(0))


@pytest.mark.parametrize("values", [{}, {"model": "simple"}, {"model": "deep"}])
def test_bytes_are_the_images_that_they_stand_for(values, test_images):
    model = build(**values)
    floats = test_images[:3].astype(np.float32) / 255
    with jax.default_matmul_precision("highest"):  # without TF32
        codes = model.encode(jnp.asarray(test_images[:3]), xla)
        np.testing.assert_allclose(codes, model.encode(floats, xla), atol=1e-6)


def plain_network(model, x):
    """The lab's network layer by layer with XLA's own operations: all activations in order."""

    def conv(x, layer, padding="SAME"):
        y = lax.conv_general_dilated(
            x,
            layer.kernel[...],
            (1, 1),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        return y + layer.bias[...][None, None, None, :]

    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")

    def upsample(x):
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

    trail = [x]
    for layer in (model.conv1, model.conv2, model.conv3):
        trail.append(jax.nn.relu(conv(trail[-1], layer)))
        trail.append(pool(trail[-1]))
    trail.append(jax.nn.relu(conv(trail[-1], model.conv4)))
    for layer, padding in ((model.conv5, "SAME"), (model.conv6, "VALID")):
        trail.append(upsample(trail[-1]))
        trail.append(jax.nn.relu(conv(trail[-1], layer, padding)))
    trail.append(upsample(trail[-1]))
    return [*trail, conv(trail[-1], model.conv7)]


def test_layer_table_is_the_labs():
    table = layer_table(build().topology)
    rows = [line for line in table.splitlines() if "(None" in line]
    ours = [re.sub(r"^\w+ \((\w+)\)\s+(\(.*\))\s+(\d+)$", r"\1 \2 \3", row) for row in rows]
    assert ours == LAB
    assert "Total params: 4,385\nTrainable params: 4,385\nNon-trainable params: 0" in table


def test_conv_model_is_the_labs_network(test_images):
    model = build()
    x = jnp.asarray(test_images[:20] / 255, jnp.float32)
    with jax.default_matmul_precision("highest"):
        trail = jax.jit(functools.partial(plain_network, model))(x)
        code, logits = jax.jit(model.encode)(x), jax.jit(model)(x)
    shapes = [f"(None, {', '.join(map(str, y.shape[1:]))})" for y in trail]
    assert shapes == [re.sub(r"^\w+ | \d+$", "", row) for row in LAB]
    np.testing.assert_allclose(code, trail[6], atol=1e-5)
    np.testing.assert_allclose(logits, trail[-1], atol=1e-5)


@pytest.mark.parametrize(
    ("values", "count", "code"),
    [
        ({}, 4_385, (4, 4, 8)),
        ({"features": (32, 16, 4)}, 11_193, (4, 4, 4)),
        ({"model": "simple"}, 50_992, (32,)),
        ({"model": "deep"}, 222_384, (32,)),
    ],
)
def test_sizes(values, count, code):
    model = build(**values)
    x = jax.ShapeDtypeStruct((3, 28, 28, 1), jnp.float32)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count
    assert f"Total params: {count:,}" in layer_table(model.topology)
    assert model.topology.code_shape == code
    codes = jax.eval_shape(model.encode, x)
    assert codes.shape == (3, *code)
    assert jax.eval_shape(model.decode, codes).shape == (3, 28, 28, 1)
    assert jax.eval_shape(model, x).shape == (3, 28, 28, 1)


@pytest.mark.parametrize("shape", [(3, 3, 1, 16), (3, 3, 8, 5), (784, 32)])
def test_kernels_start_with_the_bits_of_flax(shape):
    draws = [
        draw(jax.random.key(3), shape, jnp.float32)
        for draw in (autoencoders._draw_kernel, nnx.initializers.glorot_uniform())
    ]
    np.testing.assert_array_equal(*draws)


def test_dense_model_by_hand():
    model = build(model="simple")
    x = np.random.default_rng(0).random((4, 28, 28, 1), np.float32)
    w1, b1, w2, b2 = (
        np.asarray(array[...], np.float64)
        for layer in (model.dense1, model.dense2)
        for array in (layer.kernel, layer.bias)
    )
    code = np.maximum(x.reshape(4, 784) @ w1 + b1, 0)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(model.encode(x), code, atol=1e-5)
        np.testing.assert_allclose(model(x).reshape(4, 784), code @ w2 + b2, atol=1e-5)


@pytest.mark.parametrize("kind", ["conv", "deep"])
def test_initial_values_are_keras_defaults(kind):
    for path, leaf in nnx.to_flat_state(nnx.state(build(model=kind), nnx.Param)):
        values = np.asarray(leaf[...])
        if path[-1] == "bias":
            assert not values.any()
            continue
        *window, n_in, n_out = values.shape
        limit = np.sqrt(6 / (np.prod(window) * (n_in + n_out)))
        assert np.abs(values).max() <= limit
        assert values.std() == pytest.approx(limit / np.sqrt(3), rel=0.15)


@pytest.mark.parametrize("kind", ["conv", "deep"])
def test_other_image_sizes_are_refused(kind):
    with pytest.raises(cae_jax.UserError, match=r"\[2, 32, 32, 1\].*28 x 28"):
        build(model=kind)(jnp.zeros((2, 32, 32, 1)))
