"""The matmul forms against XLA's own convolution, pooling and upsampling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cae_jax import phase

# float32 sums of at most 144 terms of size 1, taken in another order
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


def plain_conv(x, kernel, bias, padding="SAME"):
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    return y + bias[None, None, None, :]


def plain_pool(y):
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")


def plain_upsample(x):
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


FORMS = {
    "conv": (phase.conv, plain_conv),
    "conv_pool": (phase.conv_pool, lambda x, k, b: plain_pool(plain_conv(x, k, b))),
    "upsample_conv same": (
        phase.upsample_conv,
        lambda x, k, b: plain_conv(plain_upsample(x), k, b),
    ),
    "upsample_conv valid": (
        lambda x, k, b: phase.upsample_conv(x, k, b, padding="valid"),
        lambda x, k, b: plain_conv(plain_upsample(x), k, b, "VALID"),
    ),
}


def random_layer(seed, batch, height, width, channels, features):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, height, width, channels))
    kernel = rng.normal(size=(3, 3, channels, features))
    bias = rng.normal(size=features)
    return tuple(jnp.asarray(array, jnp.float32) for array in (x, kernel, bias))


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, layer):
    """The output, and the gradients for a random derivative of it."""
    with jax.default_matmul_precision("highest"):
        y, vjp = jax.vjp(function, *layer)
        return y, vjp(jax.random.normal(jax.random.key(0), y.shape))


def check(form, layer):
    ours, plain = FORMS[form]
    y, gradients = value_and_gradients(ours, layer)
    expected, expected_gradients = value_and_gradients(plain, layer)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, **TOLERANCE)
    terms = y.size / layer[2].size  # of the sum that a gradient is
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6 * terms + 2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "shape",
    [(2, 28, 28, 1, 16), (3, 14, 14, 16, 8), (2, 7, 7, 8, 8), (1, 5, 8, 2, 3)],
)
def test_equals_the_plain_form(form, shape):
    check(form, random_layer(0, *shape))


@pytest.mark.parametrize("size", [6, 7])
def test_first_maximum_gets_the_gradient_at_ties(size):
    x, kernel, bias = random_layer(0, 2, size, size, 2, 3)
    check("conv_pool", (jnp.ones_like(x), kernel, bias))
    # Small whole numbers: exact sums, so that real ties occur, and occur in both forms.
    check("conv_pool", (jnp.round(x), jnp.round(kernel), bias))


@pytest.mark.parametrize("form", FORMS)
def test_not_a_number_stays_visible(form):
    x, kernel, bias = random_layer(0, 1, 6, 6, 2, 3)
    x = x.at[0, 2, 2, 0].set(jnp.nan)
    ours, plain = (function(x, kernel, bias) for function in FORMS[form])
    # Wherever the plain form has one; ours may have more, since it multiplies NaN by 0 too.
    assert jnp.isnan(plain).any()
    assert jnp.isnan(ours)[jnp.isnan(plain)].all()


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="'same' or 'valid'"):
        phase.upsample_conv(*random_layer(0, 1, 4, 4, 1, 1), padding="full")
