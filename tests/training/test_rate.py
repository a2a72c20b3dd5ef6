"""Training for a rate: the loss by hand, and that runs repeat their bits."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cae_jax
from cae_jax.config import check_used
from cae_jax.models import autoencoders
from cae_jax.ops.backend import MATMUL, XLA, choose
from cae_jax.runs import history
from cae_jax.training.loss import make_loss, make_losses
from tests.conftest import SMALL, signal_in_chunk
from tests.runs.test_reliability import assert_same_end
from tests.training.test_devices import train

RATED = dataclasses.replace(
    SMALL, model="deep", widths=(24, 6), loss="mse", rate=0.02, epochs=2, learning_rate=3e-3
)
KEY = jax.random.key(3)


def build(config):
    model = autoencoders.build(config, nnx.Rngs(0))
    return model, *nnx.split(model, nnx.Param)


@pytest.fixture
def images(test_images):
    return test_images[:4]


def test_the_loss_is_the_distortion_and_the_bits_of_a_noisy_code(images):
    model, graphdef, params = build(RATED)
    noise = np.asarray(jax.random.uniform(KEY, (4, 6), minval=-0.5, maxval=0.5))
    code = np.asarray(model.latents(images)) + noise
    pixels = nnx.sigmoid(model.decode(jnp.asarray(code)))
    mse = np.square(np.asarray(pixels) - images / 255).mean((1, 2, 3))
    expected = mse + 0.02 * np.asarray(model.density.bits(code)).sum(1) / 784
    loss = make_loss(graphdef, MATMUL, "mse", 0.02)(params, images, images, jnp.ones(4), KEY)
    assert float(loss) == pytest.approx(expected.mean(), rel=1e-5)


def test_without_a_key_the_code_is_rounded(images):
    model, graphdef, params = build(RATED)
    code = np.rint(np.asarray(model.latents(images)))
    np.testing.assert_array_equal(model.encode(images), code)
    bce, mse, bits = make_losses(graphdef)(params, images, images)
    np.testing.assert_allclose(bits, np.asarray(model.density.bits(code)).sum(1), rtol=1e-6)
    pixels = np.asarray(nnx.sigmoid(model.decode(jnp.asarray(code))), np.float64)
    x = images / 255
    np.testing.assert_allclose(mse, np.square(pixels - x).mean((1, 2, 3)), rtol=1e-4)
    nats = -(x * np.log(pixels) + (1 - x) * np.log1p(-pixels)).mean((1, 2, 3))
    np.testing.assert_allclose(bce, nats, rtol=1e-4)
    assert [each.shape for each in make_losses(graphdef)(params, images[:0], images[:0])] == 3 * [
        (0,)
    ]


@pytest.mark.parametrize("backend", [XLA, MATMUL])
def test_a_convolutional_code_has_bits_for_each_place(backend, images):
    config = dataclasses.replace(RATED, model="conv", widths=None, features=(4, 3))
    model, graphdef, params = build(config)
    code = np.asarray(model.encode(images, backend.layers))
    assert code.shape == (4, 7, 7, 3)
    assert (code == np.rint(code)).all()
    expected = np.asarray(model.density.bits(code.reshape(-1, 3))).reshape(4, -1).sum(1)
    np.testing.assert_allclose(
        make_losses(graphdef, backend)(params, images, images)[2], expected, rtol=1e-5
    )


def test_a_dense_network_for_a_rate_begins_with_a_linear_map():
    model, *_ = build(dataclasses.replace(RATED, widths=(30, 24, 6)))
    kernels = {i: np.asarray(getattr(model, f"dense{i}").kernel[...]) for i in range(1, 7)}
    for i in (1, 2, 4, 5):  # without the units that pass no value
        module = getattr(model, f"dense{i}")
        module.kernel[...] = module.kernel[...].at[:, 12:].set(0)
    rng = np.random.default_rng(0)
    images, codes = rng.random((3, 28, 28, 1), np.float32), rng.standard_normal((3, 6), np.float32)
    expected = images.reshape(3, -1) @ kernels[1][:, :6]
    np.testing.assert_allclose(model.latents(images), expected, atol=1e-5)
    expected = codes @ kernels[6][:6]
    np.testing.assert_allclose(model.decode(codes).reshape(3, -1), expected, atol=1e-5)
    assert kernels[2][12:, 12:].std() > 0.1  # the others are drawn


def test_a_run_for_a_rate_resumes_to_the_bit(data_dir, tmp_path):
    whole = cae_jax.fit(RATED, tmp_path / "whole", data_dir=data_dir)
    stop = {"chunk_steps": 3, "on_chunk": signal_in_chunk(2)}
    stopped = cae_jax.fit(RATED, tmp_path / "run", data_dir=data_dir, **stop)
    assert stopped.interrupted == signal.SIGINT
    resumed = cae_jax.fit(RATED, tmp_path / "run", data_dir=data_dir)
    jax.tree.map(
        np.testing.assert_array_equal, resumed.autoencoder.params, whole.autoencoder.params
    )
    assert [row.val_bits for row in resumed.history] == [row.val_bits for row in whole.history]
    assert history.of_run(tmp_path / "run") == resumed.history


@pytest.mark.slow
def test_any_number_of_devices_has_the_same_bits(data_dir, tmp_path):
    """Also where the images are streamed and the training was stopped."""
    config = dataclasses.replace(RATED, microbatches=8, batch_size=100)
    train(tmp_path, data_dir, [config], ["1", "3+8"])
    train(tmp_path / "streamed", data_dir, [config], ["4+1"], device_budget=900_000)
    for other in ("3+8", "streamed/4+1"):
        assert_same_end(tmp_path / other, tmp_path / "1")


def test_a_code_of_whole_numbers_is_what_a_run_encodes(data_dir, tmp_path, images):
    config = dataclasses.replace(RATED, microbatches=2, noise="gaussian", noise_level=0.1, epochs=1)
    result = cae_jax.fit(config, tmp_path / "run", data_dir=data_dir)
    row = result.history[-1]
    assert row.val_bits > 0
    loaded = cae_jax.load(tmp_path / "run")
    code = loaded.encode(images)
    assert (code == np.rint(code)).all()
    np.testing.assert_array_equal(loaded.decode(code), loaded.reconstruct(images))
    # The loss of the validation is that of the training, with rounding: the weights are RATED's.
    mse = row.val_loss - RATED.rate * row.val_bits / 784
    assert 10 ** (-row.val_psnr / 10) < mse * 1.001  # a mean of logarithms is below that of values


def test_a_group_has_the_bits_of_each_member(data_dir, tmp_path):
    configs = [dataclasses.replace(RATED, seed=seed, epochs=1) for seed in (0, 1)]
    options = {"data_dir": data_dir, "members_per_program": 2}
    found = cae_jax.fit_population(configs, tmp_path / "all", **options)
    config, rows, _ = [*found.members.values()][1]
    alone = cae_jax.fit(config, tmp_path / "alone", data_dir=data_dir).history[-1]
    assert rows[-1].val_bits == pytest.approx(alone.val_bits, rel=1e-4)
    assert rows[-1].val_loss == pytest.approx(alone.val_loss, rel=1e-4)


def test_the_native_kernel_leaves_such_a_network_to_the_others():
    network = autoencoders.abstract(dataclasses.replace(RATED, model="conv", widths=None)).topology
    backend = choose(network, platform="cpu")
    assert backend.name == "matmul"
    assert "`rate`" in backend.reason
    with pytest.raises(cae_jax.UserError, match="native backend is unavailable"):
        choose(network, "native", platform="cpu")


def test_widths_are_for_the_model_deep_only():
    config = dataclasses.replace(RATED, model="conv")
    with pytest.raises(cae_jax.UserError, match="`widths` has no effect with model conv"):
        check_used(config, ["widths"])
