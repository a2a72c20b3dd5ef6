"""The shape that goes in is the shape that comes out, trained by every backend."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from flax import nnx

from cae_jax.config import TrainConfig, resolved
from cae_jax.models import autoencoders, topology
from cae_jax.ops.backend import choose
from cae_jax.training import step
from cae_jax.training.noise import build_corruption
from cae_jax.training.optimizer import build_optimizer

# Every form that XLA compiles: of the CPU, the GPU and the TPU.
FORMS = [("xla", "cpu"), ("matmul", "cpu"), ("matmul", "gpu"), ("xla", "tpu")]
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
shapes = st.tuples(st.integers(4, 256), st.integers(4, 256), st.sampled_from([1, 3, 4]))
small_shapes = st.tuples(st.integers(4, 30), st.integers(4, 30), st.sampled_from([1, 3, 4]))
features = st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple)


def train_one_step(config, images, form):
    """The parameters before and after a step, and the reconstructions by the latter."""
    backend = choose(topology.from_config(config), *form)
    graphdef, params = nnx.split(autoencoders.build(config, nnx.Rngs(0)), nnx.Param)
    optimizer = build_optimizer(config, 1)
    corrupt = build_corruption(config.noise, config.noise_level)
    run = step.make_run_steps(graphdef, optimizer, corrupt, backend, config.loss)
    state = step.init_state(nnx.merge(graphdef, params), optimizer, 1)
    batches = np.arange(len(images), dtype=np.int32)[None]
    arguments = (state, images, batches, step.make_keys(0).noise, np.int32(0), np.int32(1))
    state = run.lower(*arguments).compile(compiler_options=QUICKLY_COMPILED)(*arguments)
    reconstruct = jax.jit(autoencoders.make_passes(graphdef, backend).reconstruct)
    compiled = reconstruct.lower(state.params, images).compile(compiler_options=QUICKLY_COMPILED)
    return state, np.asarray(compiled(state.params, images))


def check(shape, widths, form):
    config = TrainConfig(
        data="photos", features=widths, batch_size=2, optimizer="sgd", warmup_steps=0
    )
    config = dataclasses.replace(
        resolved(config, shape), noise="masking", noise_level=0.5, loss="mse"
    )
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    before = nnx.state(autoencoders.build(config, nnx.Rngs(0)), nnx.Param)
    state, reconstructions = train_one_step(config, images, form)
    assert reconstructions.shape == images.shape
    assert np.isfinite(reconstructions).all()
    assert np.isfinite(np.asarray(state.losses_S)).all()
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True)
    ]
    assert any(changed)  # the last bias at the least


@pytest.mark.parametrize(
    "form", [FORMS[0], *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[1:])]
)
def test_a_step_and_a_reconstruction_of_small_images(form):
    check((9, 14, 3), (3,), form)  # an odd size, and one that is halved to an odd one


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@hypothesis.given(small_shapes, features)
@hypothesis.settings(max_examples=3, deadline=None, derandomize=True)
def test_a_step_and_a_reconstruction_of_other_small_images(form, shape, widths):
    check(shape, widths, form)


@pytest.mark.slow
@hypothesis.given(shapes, features)
@hypothesis.settings(max_examples=12, deadline=None)
def test_a_step_and_a_reconstruction_by_all_forms(shape, widths):
    for form in FORMS:
        check(shape, widths, form)


def test_a_dense_model_of_a_colour_image():
    plain = TrainConfig(data="photos", model="deep", optimizer="sgd", warmup_steps=0)
    config = resolved(plain, (9, 14, 3))
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 14, 3), np.uint8)
    _, reconstructions = train_one_step(config, images, ("matmul", "cpu"))
    assert reconstructions.shape == images.shape
    assert topology.from_config(config).layers[0].shape == (9 * 14 * 3,)
