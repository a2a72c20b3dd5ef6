"""The methods give the same training, and checkpoints do not know which one it was."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import cae_jax
from cae_jax.ops import backend
from tests.conftest import CHOICE, METHODS, SMALL, needs_fused
from tests.test_loop import parameters

# Adam divides by the root of the squared gradient plus eps. With the default, 1e-8, the rounding of
# a gradient near 0 becomes a good part of the learning rate.
ONE_EPOCH = dataclasses.replace(SMALL, epochs=1, eps=1e-3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir):
    """Folder and result of one epoch, 8 steps, by each method."""
    folder = tmp_path_factory.mktemp("methods")
    return {
        method: (
            folder / method,
            cae_jax.fit(ONE_EPOCH, folder / method, data_dir=data_dir, method=method),
        )
        for method in ("conv", "phase", "fused")
        if method != "fused" or CHOICE.method == "fused"
    }


@pytest.mark.parametrize("method", METHODS[1:])
def test_an_epoch_is_the_same_by_every_method(runs, method):
    folder, result = runs[method]
    _, expected = runs["conv"]
    assert json.loads((folder / "result.json").read_text())["method"] == method
    assert result.history[0].loss == pytest.approx(expected.history[0].loss, rel=5e-6)
    assert result.history[0].val_loss == pytest.approx(expected.history[0].val_loss, rel=5e-6)
    # 8 steps at rates of up to 2e-2, over eps, of gradients that differ by some 1e-7.
    for ours, plain in zip(
        jax.tree.leaves(parameters(result)), jax.tree.leaves(parameters(expected)), strict=True
    ):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_used_by_any_method(runs, method, test_images):
    folder, result = runs["phase"]
    loaded = cae_jax.load(folder, method=method)
    np.testing.assert_allclose(
        loaded.reconstruct(test_images[:20]),
        result.autoencoder.reconstruct(test_images[:20]),
        atol=1e-5,
    )


@needs_fused
def test_a_cpu_takes_the_fused_step():
    assert backend.choose(cae_jax.TrainConfig()) == ("fused", "a CPU with a C++ compiler")


def test_choices():
    conv = cae_jax.TrainConfig()
    deep = cae_jax.TrainConfig(model="deep")
    assert backend.choose(conv, "conv") == ("conv", "as asked for")
    assert backend.choose(deep) == ("phase", "every layer of the model deep is a matmul")
    with pytest.raises(cae_jax.UserError, match="takes auto, conv, phase, fused"):
        backend.choose(conv, "winograd")
    for method in ("conv", "fused"):
        with pytest.raises(cae_jax.UserError, match="model deep takes auto or phase"):
            backend.choose(deep, method)


def test_a_gpu_takes_the_phase_form(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert backend.choose(cae_jax.TrainConfig()) == ("phase", "the device is a gpu")
    with pytest.raises(cae_jax.UserError, match="for the CPU, and the device is a gpu"):
        backend.choose(cae_jax.TrainConfig(), "fused")
