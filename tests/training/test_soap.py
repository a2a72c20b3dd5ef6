"""Tests SOAP against the equations of its paper, computed by NumPy one kernel at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import cae_jax
from cae_jax.training import soap
from cae_jax.training.optimizer import build_optimizer

B1, B2, EPS = 0.9, 0.99, 1e-8
# Two kernels that are grouped, one of them turned; one with sides of 1; a dense kernel with a side
# that is too long for a basis; two biases.
SHAPES = {
    "encoder": (3, 3, 4, 2),
    "decoder": (3, 3, 2, 4),
    "output": (3, 3, 2, 1),
    "dense": (soap.LIMIT + 1, 5),
    "bias": (4,),
    "other bias": (3,),
}


def soap_by_hand(gradients: list[np.ndarray], limit: int) -> np.ndarray:
    """The last update of the tensor of one kernel, after Vyas et al. 2024, algorithm 3.

    The mean of the gradient is kept in the coordinates of the kernel, as the paper has it.
    """
    sides = gradients[0].shape
    rotated = [n <= limit for n in sides]
    factors = [np.zeros((n, n)) for n in sides]
    bases = [np.eye(n) for n in sides]
    m, v = np.zeros(sides), np.zeros(sides)

    def turn(x: np.ndarray, inverse: bool) -> np.ndarray:
        for axis, q in enumerate(bases):
            if rotated[axis]:
                matrix = q if inverse else q.T
                x = np.moveaxis(
                    np.einsum("ij,j...->i...", matrix, np.moveaxis(x, axis, 0)), 0, axis
                )
        return x

    update = np.zeros(sides)
    for t, g in enumerate(gradients, start=1):
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * turn(g, inverse=False) ** 2
        n = turn(m, inverse=False) / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)
        update = turn(n, inverse=True)
        for axis in np.flatnonzero(rotated):
            rows = np.moveaxis(g, axis, 0).reshape(sides[axis], -1)
            factors[axis] = 0.95 * factors[axis] + 0.05 * rows @ rows.T
            if t % 10 == 0:
                bases[axis] = np.linalg.qr(factors[axis] @ bases[axis])[0]
    return update


def gradients_of(shape: tuple[int, ...], steps: int) -> list[np.ndarray]:
    """Gradients with a strong direction in each side, as of a real network."""
    rng = np.random.default_rng(len(shape) + shape[-1])
    scale = rng.uniform(0.1, 3, shape)
    return [rng.normal(size=shape) * scale + scale for _ in range(steps)]


def test_updates_are_those_of_the_paper():
    gradients = {name: gradients_of(shape, 35) for name, shape in SHAPES.items()}
    optimizer = soap.scale_by_soap(B1, B2, EPS)
    state = optimizer.init({name: jnp.zeros(shape) for name, shape in SHAPES.items()})
    update = jax.jit(optimizer.update)
    for step in range(1, 36):
        grads = {name: jnp.asarray(each[step - 1], jnp.float32) for name, each in gradients.items()}
        updates, state = update(grads, state)
        for name, shape in SHAPES.items() if step in (1, 10, 11, 35) else ():
            # Of a bias, SOAP without bases is Adam.
            sides = (9, *shape[2:]) if len(shape) == 4 else shape
            limit = soap.LIMIT if len(shape) > 1 else 0
            expected = soap_by_hand([g.reshape(sides) for g in gradients[name][:step]], limit)
            np.testing.assert_allclose(
                updates[name], expected.reshape(shape), rtol=2e-3, atol=2e-3, err_msg=name
            )


@pytest.mark.slow
def test_a_valley_across_the_axes_is_followed():
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    right, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    curvature = np.outer(np.logspace(0, 3, 8), np.logspace(0, 2, 6))

    def loss(x):
        return jnp.sum(curvature * (left.T @ x["w"] @ right) ** 2)

    def after(optimizer) -> float:
        params = {"w": jnp.ones((8, 6)), "bias": jnp.zeros(1)}
        rate = optax.linear_schedule(0.3, 0.0, 1000)
        chain = optax.chain(optimizer, optax.scale_by_learning_rate(rate))
        state = chain.init(params)

        def step(carry, _):
            params, state = carry
            updates, state = chain.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, state), length=1000)
        return float(loss(params))

    assert after(soap.scale_by_soap(B1, B2)) < 0.1 * after(optax.scale_by_adam(B1, B2))


def test_a_step_has_few_operations_however_many_layers():
    def operations(layers: int) -> int:
        params = {str(i): jnp.ones((3, 3, 8, 16 if i % 2 else 8)) for i in range(layers)}
        params["bias"] = jnp.ones(8)
        optimizer = soap.scale_by_soap()
        program = jax.make_jaxpr(optimizer.update)(params, optimizer.init(params))
        return sum(eqn.primitive.name == "dot_general" for eqn in program.eqns)

    assert operations(2) == operations(8)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["simple", "deep"])
def test_a_run_with_soap_that_broke_off_resumes_exactly(data_dir, tmp_path, model, monkeypatch):
    config = cae_jax.TrainConfig(
        model=model, optimizer="soap", epochs=2, train_examples=2000, test_examples=100
    )
    whole = cae_jax.fit(config, tmp_path / "whole", data_dir=data_dir)

    def stop(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cae_jax.fit(config, tmp_path / "run", data_dir=data_dir, on_epoch=stop)
    resumed = cae_jax.fit(config, tmp_path / "run", data_dir=data_dir)
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.state(resumed.autoencoder.model, nnx.Param),
        nnx.state(whole.autoencoder.model, nnx.Param),
    )


@pytest.mark.slow
def test_skipping_leaves_the_state_as_it_was():
    config = cae_jax.TrainConfig(optimizer="soap", on_nan="skip")
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    optimizer = build_optimizer(config, total_steps=100)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    _, state = update(params, state, params)
    after: Any
    broken = {**params, "bias": jnp.full(4, jnp.nan)}
    updates, after = update(broken, state, params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
    for old, new in zip(
        jax.tree.leaves(state.inner_state), jax.tree.leaves(after.inner_state), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    assert int(after.total_notfinite) == 1


@pytest.mark.slow
def test_models_of_a_population_train_as_alone():
    params = {name: jnp.ones((2, *shape)) for name, shape in SHAPES.items() if name != "dense"}
    grads = [
        {
            name: jnp.asarray(np.random.default_rng(step).normal(size=x.shape), jnp.float32)
            for name, x in params.items()
        }
        for step in range(12)
    ]
    optimizer = soap.scale_by_soap()

    def last_update(params, grads):
        updates, state = params, optimizer.init(params)
        for each in grads:
            updates, state = optimizer.update(each, state)
        return updates

    together = jax.vmap(last_update)(params, grads)
    for member in range(2):
        alone = last_update(*jax.tree.map(lambda x, i=member: x[i], (params, grads)))
        jax.tree.map(
            lambda a, b, i=member: np.testing.assert_allclose(a[i], b, atol=1e-4), together, alone
        )
