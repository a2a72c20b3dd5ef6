"""The backends agree, and checkpoints do not depend on which one trained."""

import dataclasses
import functools
import json
import os

import jax
import numpy as np
import pytest
from flax import nnx

import cae_jax
from cae_jax.models import autoencoders
from cae_jax.models.topology import convolutional, from_config
from cae_jax.ops import matmul, native, xla
from cae_jax.ops.backend import XLA, choose
from cae_jax.runs import history
from cae_jax.training.loss import make_loss
from tests.conftest import BACKENDS, SMALL, needs_native

# Adam divides by the root of the squared gradient plus eps. With the default, 1e-8, the rounding of
# a gradient near 0 becomes a good part of the learning rate.
ONE_EPOCH = dataclasses.replace(SMALL, epochs=1, eps=1e-3)


@pytest.fixture(scope="session")
def trained(shared_run):
    """The folder of one epoch, 8 steps, by a backend, trained once."""
    return functools.cache(lambda backend: shared_run(backend, ONE_EPOCH, backend=backend))


def weights(folder):
    return jax.tree.leaves(nnx.state(cae_jax.load(folder, backend="xla").model, nnx.Param))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_an_epoch_is_the_same_by_every_backend(trained, backend):
    folder, expected = trained(backend), trained("xla")
    assert json.loads((folder / "result.json").read_text())["backend"] == backend
    (row,), (wanted,) = (history.read(each / "history.csv") for each in (folder, expected))
    assert row.loss == pytest.approx(wanted.loss, rel=5e-6)
    assert row.val_loss == pytest.approx(wanted.val_loss, rel=5e-6)
    # 8 steps at rates of up to 2e-2, over eps, of gradients that differ by some 1e-7.
    for ours, plain in zip(weights(folder), weights(expected), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_is_used_by_any_backend(trained, backend, test_images):
    ours, by_its_own = (
        cae_jax.load(trained("matmul"), backend=each).reconstruct(test_images[:20])
        for each in (backend, "matmul")
    )
    np.testing.assert_allclose(ours, by_its_own, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "platform"), [("matmul", "gpu"), ("xla", "tpu")])
def test_the_forms_for_other_devices_agree(name, platform, test_images):
    graphdef, params = nnx.split(autoencoders.build(SMALL, nnx.Rngs(0)), nnx.Param)
    images, weights = test_images[:64], np.ones(64, np.float32)
    backend = choose(from_config(SMALL), name, platform)
    assert backend.layers not in (xla, matmul)  # another form of theirs
    (loss, gradient), (expected, wanted) = (
        jax.jit(jax.value_and_grad(make_loss(graphdef, each)))(params, images, images, weights)
        for each in (backend, XLA)
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for ours, plain in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        # Sums of up to 50,000 terms; rounding decides some maxima and signs.
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-3 * np.abs(plain).max())


def chosen(config, *name):
    """Name and reason of the backend."""
    return choose(from_config(config), *name)[:2]


@needs_native
def test_a_cpu_takes_the_native_kernel():
    assert chosen(cae_jax.TrainConfig()) == ("native", "a CPU with a C++ compiler")


def test_choices(monkeypatch):
    conv, deep = cae_jax.TrainConfig(), cae_jax.TrainConfig(model="deep")
    gpu = "cuda is unavailable: not measured on this GPU, of compute capability unknown"
    assert chosen(conv, "xla") == ("xla", "requested")
    assert chosen(conv, "auto", "tpu") == ("xla", "a TPU has units for convolutions")
    assert chosen(conv, "auto", "gpu") == ("matmul", gpu)
    assert chosen(deep) == ("matmul", "every layer of the model deep is a matmul")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chosen(conv) == ("matmul", gpu)
    for config, name, message in (
        (conv, "winograd", "takes auto, xla, matmul, native, cuda"),
        (conv, "native", "for the CPU, and the device is a gpu"),
        (deep, "xla", "model deep takes auto or matmul"),
        (deep, "native", "model deep takes auto or matmul"),
    ):
        with pytest.raises(cae_jax.UserError, match=message):
            chosen(config, name)


def test_a_call_on_a_cpu_takes_fewer_images_where_they_are_larger():
    # 64 x 64 x 3 values are 15.7 times as many as 28 x 28; 256 / 15.7 is 16.3.
    for shape, platform, most in (
        ((28, 28, 1), "cpu", 256),
        ((8, 8, 1), "cpu", 256),
        ((64, 64, 3), "cpu", 16),
        ((64, 64, 3), "gpu", 256),
        ((1000, 1000, 3), "cpu", 1),
    ):
        assert choose(convolutional(shape, (8,)), "matmul", platform).max_batch == most


@needs_native
def test_a_call_of_the_native_kernel_takes_whole_groups_for_all_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(native, "register", lambda *_: "")  # compiles nothing
    # A group has 16 images; 4096 / 15.7 is 261.3, and 8 cores take 128 at least.
    for shape, most in (((28, 28, 1), 4096), ((64, 64, 3), 256), ((500, 500, 3), 128)):
        assert choose(convolutional(shape, (8,)), "native").max_batch == most
