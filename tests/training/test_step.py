"""The compiled epoch against plain Python loops and NumPy.

By the backend that compiles soonest; tests/ops/test_backends.py compares the others with it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import cae_jax
from cae_jax.models import autoencoders
from cae_jax.ops import xla
from cae_jax.ops.backend import MATMUL, XLA
from cae_jax.training import loss
from cae_jax.training.metrics import epoch_loss
from cae_jax.training.noise import build_corruption
from cae_jax.training.optimizer import build_optimizer, build_schedule
from cae_jax.training.step import (
    epoch_batches,
    init_state,
    make_evaluate,
    make_run_steps,
)

EXAMPLES, BATCH = 75, 32
NOISE_KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def setup(test_images):
    """Model, optimizer, images on the device, and the batches of one epoch: 32 + 32 + 11."""
    config = cae_jax.TrainConfig(optimizer="sgd", learning_rate=0.5, warmup_steps=0, features=(2,))
    model = autoencoders.build(config, nnx.Rngs(0))
    optimizer = build_optimizer(config, total_steps=30)
    batches = epoch_batches(jax.random.key(0), jnp.int32(1), examples=EXAMPLES, batch_size=BATCH)
    return model, optimizer, jnp.asarray(test_images[:EXAMPLES]), batches


def fresh_state(model, optimizer):
    return jax.tree.map(jnp.copy, init_state(model, optimizer, steps=3))


def assert_bitwise_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_an_epoch_takes_every_image_once_and_each_time_in_another_order():
    orders = [
        np.asarray(epoch_batches(jax.random.key(0), epoch, examples=60000, batch_size=128))
        for epoch in (1, 2)
    ]
    for order in orders:
        assert order.shape == (469, 128)
        assert (order[-1] < 60000).sum() == 96
        assert sorted(order.ravel()[:60000]) == list(range(60000))
    assert (orders[0] != orders[1]).mean() > 0.99


@pytest.mark.parametrize(
    "noise",
    ["none", *(pytest.param(noise, marks=pytest.mark.slow) for noise in ("gaussian", "mix"))],
)
def test_the_compiled_loop_equals_a_python_loop_of_steps(setup, noise):
    model, optimizer, images, batches = setup
    corrupt = build_corruption(noise)
    run_steps = make_run_steps(nnx.graphdef(model), optimizer, corrupt, XLA)
    state = run_steps(fresh_state(model, optimizer), images, batches, NOISE_KEY, 0, 3)

    # Batch by batch with the plain mean of the loss, and the last batch at its own size.
    def loss(params, inputs, targets):
        logits = nnx.merge(nnx.graphdef(model), params)(inputs, xla)
        # Image by image first: XLA of jax 0.7 loses the fifth digit in one sum over all pixels.
        return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=(1, 2, 3)).mean()

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    params, opt_state, *_ = fresh_state(model, optimizer)
    for i, batch in enumerate(np.asarray(batches)):
        targets = np.asarray(images)[np.minimum(batch, EXAMPLES - 1)] / np.float32(255)
        inputs = corrupt(jax.random.fold_in(NOISE_KEY, i), targets) if corrupt else targets
        count = (batch < EXAMPLES).sum()
        value, grads = value_and_grad(params, inputs[:count], targets[:count])
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        assert state.losses_S[i] == pytest.approx(float(value), abs=1e-6)
    for ours, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        # float32 sums of 25,088 terms, taken in another order
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert state.step == 3


@pytest.mark.parametrize(
    ("noise", "chunk"),
    [
        ("none", 2),
        pytest.param("none", 1, marks=pytest.mark.slow),
        pytest.param("mix", 2, marks=pytest.mark.slow),
    ],
)
def test_chunks_do_not_change_a_bit(setup, noise, chunk):
    model, optimizer, images, batches = setup
    # On a GPU the gradients of cuDNN's convolutions do not repeat their bits.
    backend = MATMUL if jax.default_backend() == "gpu" else XLA
    run_steps = make_run_steps(nnx.graphdef(model), optimizer, build_corruption(noise), backend)
    whole = run_steps(fresh_state(model, optimizer), images, batches, NOISE_KEY, 0, 3)
    state = fresh_state(model, optimizer)
    for start in range(0, 3, chunk):
        stop = min(3, start + chunk)
        state = run_steps(state, images, batches, NOISE_KEY, start, stop)
    assert_bitwise_equal(state, whole)


def test_the_noise_is_fresh_in_every_step_and_the_same_again(setup):
    model, _, images, _ = setup
    still = optax.sgd(0.0)
    run_steps = make_run_steps(nnx.graphdef(model), still, build_corruption("gaussian"), XLA)
    same_images = jnp.tile(jnp.arange(BATCH), (3, 1))

    def losses(key):
        state = fresh_state(model, still)
        return np.asarray(run_steps(state, images, same_images, key, 0, 3).losses_S)

    first = losses(NOISE_KEY)
    assert len(set(first)) == 3
    assert_bitwise_equal(losses(NOISE_KEY), first)
    assert (losses(jax.random.key(8)) != first).all()


def test_places_without_an_image_weigh_nothing(setup):
    model, _, images, _ = setup
    gradient = jax.jit(jax.grad(loss.make_loss(nnx.graphdef(model), XLA)))
    params = nnx.state(model, nnx.Param)
    x = autoencoders.scale(images[:8])
    expected = gradient(params, x[:5], x[:5], jnp.ones(5))
    weights = jnp.array([1.0, 1, 1, 1, 1, 0, 0, 0])
    for ours, wanted in zip(
        jax.tree.leaves(gradient(params, x, x, weights)), jax.tree.leaves(expected), strict=True
    ):
        # Sums of 3,920 float32 terms, which XLA cuts into vectors another way for 8 images; a
        # weight of 1 instead of 0 would change them by a tenth.
        np.testing.assert_allclose(ours, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("count", "max_batch"), [(250, 256), (300, 256), (300, 16)])
def test_evaluation_gives_each_image_its_own_losses(setup, count, max_batch, test_images):
    model, images = setup[0], test_images[:300]
    evaluate = make_evaluate(nnx.graphdef(model), XLA._replace(max_batch=max_batch))
    inputs = jax.random.uniform(jax.random.key(0), (count, 28, 28, 1))
    bce_N, mse_N = evaluate(nnx.state(model, nnx.Param), inputs, images[:count])
    x = np.asarray(images[:count], np.float64) / 255
    logits = np.asarray(jax.jit(lambda x: model(x, xla))(inputs), np.float64)
    expected = (np.logaddexp(0, logits) - x * logits).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(bce_N, expected, rtol=1e-5)
    expected = ((1 / (1 + np.exp(-logits)) - x) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(mse_N, expected, rtol=1e-5)


def test_epoch_loss_weighs_steps_by_their_images():
    losses = np.array([1.0, 2.0, 4.0], np.float32)
    assert epoch_loss(losses, 300, 128) == (128 * 1 + 128 * 2 + 44 * 4) / 300
    losses[1] = np.inf  # a step that was skipped
    assert epoch_loss(losses, 300, 128) == (128 * 1 + 44 * 4) / 172
    assert np.isnan(epoch_loss(np.full(3, np.nan), 300, 128))


def update_by_optax(config, gradients):
    optimizer = build_optimizer(config, total_steps=10)
    params = jnp.array([1.0, -2.0, 3.0])
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    return params


GRADIENTS = np.random.default_rng(0).normal(size=(6, 3))
PLAIN = cae_jax.TrainConfig(schedule="constant", warmup_steps=0, learning_rate=0.1)


def test_adadelta_is_keras_adadelta():
    # Zeiler 2012, in the form that Keras documents, eps inside both roots.
    params = np.array([1.0, -2.0, 3.0])
    squares, deltas = np.zeros(3), np.zeros(3)
    for g in GRADIENTS:
        squares = 0.95 * squares + 0.05 * g**2
        delta = np.sqrt(deltas + 1e-7) / np.sqrt(squares + 1e-7) * g
        deltas = 0.95 * deltas + 0.05 * delta**2
        params = params - 0.1 * delta
    config = dataclasses.replace(PLAIN, optimizer="adadelta", rho=0.95, eps=1e-7)
    np.testing.assert_allclose(update_by_optax(config, GRADIENTS), params, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "nadam", "adamw"])
def test_adam_and_its_kin_by_hand(optimizer):
    b1, b2, decay = 0.8, 0.95, 0.01 if optimizer == "adamw" else 0.0
    params, m, v = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for t, g in enumerate(GRADIENTS, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        if optimizer == "nadam":  # Dozat 2016 without his schedule of b1
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        else:
            m_hat = m / (1 - b1**t)
        step = m_hat / (np.sqrt(v / (1 - b2**t)) + 1e-8) + decay * params
        params = params - 0.1 * step
    config = dataclasses.replace(PLAIN, optimizer=optimizer, b1=b1, b2=b2, weight_decay=decay)
    np.testing.assert_allclose(update_by_optax(config, GRADIENTS), params, rtol=1e-5)


def test_sgd_with_momentum_and_clipping_by_hand():
    params, velocity = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for g in GRADIENTS:
        velocity = 0.9 * velocity + g * min(1, 0.5 / np.linalg.norm(g))
        params = params - 0.1 * velocity
    config = dataclasses.replace(PLAIN, optimizer="sgd", momentum=0.9, clip_norm=0.5)
    np.testing.assert_allclose(update_by_optax(config, GRADIENTS), params, rtol=1e-5)


def test_schedule_warms_up_and_ends_at_zero():
    schedule = build_schedule(cae_jax.TrainConfig(learning_rate=2.0, warmup_steps=100), 1100)
    rates = [float(schedule(step)) for step in (0, 50, 100, 600, 1100)]
    assert rates == pytest.approx([0, 1, 2, 1, 0], abs=1e-6)
    # A short trial warms up for half of its steps.
    schedule = build_schedule(cae_jax.TrainConfig(learning_rate=2.0, warmup_steps=100), 8)
    rates = [float(schedule(step)) for step in (0, 2, 4, 6, 8)]
    assert rates == pytest.approx([0, 1, 2, 1, 0], abs=1e-6)


@pytest.mark.slow
def test_two_epochs_on_all_images_learn(data_dir, tmp_path):
    config = cae_jax.TrainConfig(epochs=2)
    rows = cae_jax.fit(config, tmp_path / "run", data_dir=data_dir).history
    # Four prototype runs had 0.291 to 0.299 after two epochs of longer schedules.
    assert rows[-1].val_loss < 0.292


@pytest.mark.slow
def test_a_short_training_beats_the_mean_image(data_dir, test_images, tmp_path):
    config = cae_jax.TrainConfig(train_examples=6000, test_examples=500, epochs=2)
    rows = cae_jax.fit(config, tmp_path / "run", data_dir=data_dir).history
    # The best that a model without a code can do: the mean of these very images for each of them.
    x = test_images[:500] / 255
    mean = np.clip(x.mean(axis=0), 1e-6, 1 - 1e-6)
    mean_image = -(x * np.log(mean) + (1 - x) * np.log(1 - mean)).mean()
    assert rows[-1].val_loss < 0.85 * mean_image
    assert rows[-1].val_loss < rows[0].val_loss
