"""The layers of `matmul`, `xla` and `tpu` against one convolution of XLA and its autodiff."""

import functools
import types

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cae_jax.ops import matmul, tpu, xla

# float32 sums of at most 144 terms of size 1, taken in another order
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


def lax_conv(x, kernel, bias, padding="SAME"):
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    return y + bias[None, None, None, :]


def lax_pool(y):
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")


def upsample(x):
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def layer_of(module, name, x, kernel, bias, **options):
    """A layer by one of the modules."""
    (weights,) = module.prepare([(name, kernel, bias)])
    return getattr(module, name)(x, weights, **options)


def ours(name, padding=None):
    """A layer as each module has it, and by matmul with gradients summed in two groups."""
    options = {} if padding is None else {"padding": padding}
    pairs = types.SimpleNamespace(**vars(matmul.grouped))
    pairs.prepare = functools.partial(matmul.prepare, groups=2)
    return [functools.partial(layer_of, ops, name, **options) for ops in (matmul, xla, tpu, pairs)]


FORMS = {
    "conv": (ours("conv"), lax_conv),
    "conv_pool": (ours("conv_pool"), lambda x, k, b: lax_pool(lax_conv(x, k, b))),
    "upsample_conv same": (
        ours("upsample_conv", "same"),
        lambda x, k, b: lax_conv(upsample(x), k, b),
    ),
    "upsample_conv valid": (
        ours("upsample_conv", "valid"),
        lambda x, k, b: lax_conv(upsample(x), k, b, "VALID"),
    ),
}


def random_layer(seed, batch, height, width, channels, features):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, height, width, channels))
    kernel = rng.normal(size=(3, 3, channels, features))
    bias = rng.normal(size=features)
    return tuple(jnp.asarray(array, jnp.float32) for array in (x, kernel, bias))


# Without LLVM's optimisations it compiles five times faster; XLA's own are the same.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def values_and_gradients(form, layer, dy):
    """Output and gradients of each function of a form and, last, of its reference."""
    functions, reference = FORMS[form]
    results = []
    with jax.default_matmul_precision("highest"):
        for function in (*functions, reference):
            y, vjp = jax.vjp(function, *layer)
            results.append((y, vjp(dy)))
    return results


def check(form, layer):
    shape = jax.eval_shape(FORMS[form][1], *layer).shape
    dy = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    *ours, (expected, expected_gradients) = values_and_gradients(form, layer, dy)
    assert expected.shape == shape
    terms = expected.size / layer[2].size  # of the sum that a gradient is
    for y, gradients in ours:
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, **TOLERANCE)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6 * terms + 2e-5)


# Of the network: images, rows, columns, channels and features. Each is compiled once for all tests.
SHAPES = {
    "conv": [(2, 4, 4, 8, 8)],
    "conv_pool": [(2, 28, 28, 1, 16), (3, 14, 14, 16, 8), (2, 7, 7, 8, 8)],
    "upsample_conv same": [(2, 14, 14, 16, 1), (2, 4, 4, 8, 8)],
    "upsample_conv valid": [(2, 8, 8, 8, 16)],
}


@pytest.mark.parametrize(
    ("form", "shape"), [(form, shape) for form, shapes in SHAPES.items() for shape in shapes]
)
def test_the_layers_of_the_network(form, shape):
    check(form, random_layer(0, *shape))


@pytest.mark.slow
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(
    form=st.sampled_from(list(FORMS)),
    batch=st.integers(1, 3),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    channels=st.integers(1, 9),
    features=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    whole=st.booleans(),
)
def test_layers_of_any_shape(form, batch, height, width, channels, features, seed, whole):
    layer = random_layer(seed, batch, height, width, channels, features)
    if whole:  # sums without rounding, so that ties of the maximum occur, and in every form
        layer = tuple(jnp.round(array) for array in layer)
    check(form, layer)


@pytest.mark.parametrize("shape", SHAPES["conv_pool"][1:])
def test_first_maximum_gets_the_gradient_at_ties(shape):
    # Small whole numbers: exact sums, so that real ties occur, and occur in both forms.
    x, kernel, bias = map(jnp.round, random_layer(0, *shape))
    check("conv_pool", (jnp.ones_like(x), kernel, bias))
    check("conv_pool", (x, kernel, bias))


@pytest.mark.parametrize("form", FORMS)
def test_not_a_number_stays_visible(form):
    x, kernel, bias = random_layer(0, *SHAPES[form][-1])
    layer = x.at[0, 2, 2, 0].set(jnp.nan), kernel, bias
    dy = np.ones(jax.eval_shape(FORMS[form][1], *layer).shape, np.float32)
    *ours, (expected, _) = values_and_gradients(form, layer, dy)
    assert jnp.isnan(expected).any()
    for y, _ in ours:
        # Wherever XLA's form has one; ours may have more, since it multiplies NaN by 0 too.
        assert jnp.isnan(y)[jnp.isnan(expected)].all()


@pytest.mark.parametrize("module", [matmul, xla, tpu])
def test_unknown_padding_is_refused(module):
    with pytest.raises(ValueError, match="'same' or 'valid'"):
        layer_of(module, "upsample_conv", *random_layer(0, 1, 4, 4, 1, 1), padding="full")
