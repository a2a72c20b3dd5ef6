"""What the compiled programs are made of, and what must not happen while they run."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cae_jax
from cae_jax.models import autoencoders
from cae_jax.ops.backend import XLA, choose
from cae_jax.training.noise import build_corruption
from cae_jax.training.optimizer import build_optimizer
from cae_jax.training.step import epoch_batches, init_state, make_run_steps
from tests.conftest import DENSE

EXAMPLES, BATCH, STEPS = 60_000, 128, 469


def compile_steps(name, optimizer_name="adam"):
    """The loop over the steps of an epoch at its real size, compiled."""
    config = cae_jax.TrainConfig(optimizer=optimizer_name)
    model = autoencoders.build(config, nnx.Rngs(0))
    backend = choose(model.topology, name)
    optimizer = build_optimizer(config, 20 * STEPS, soap=getattr(backend.kernel, "soap", None))
    return (
        make_run_steps(nnx.graphdef(model), optimizer, backend=backend)
        .lower(
            init_state(model, optimizer, STEPS),
            jax.ShapeDtypeStruct((EXAMPLES, 28, 28, 1), jnp.uint8),
            jax.ShapeDtypeStruct((STEPS, BATCH), jnp.int32),
            jax.random.key(0),
            *(np.int32(0), np.int32(0)),
        )
        .compile()
    )


# Megabytes that a step moves (the resident images aside, which XLA counts whole) and fusions in
# it, a tenth above the most that was counted: with jax 0.7.2, and with 0.10.2 and 0.12.0.
OLD_XLA = tuple(map(int, jax.__version__.split(".")[:2])) < (0, 10)
BOUNDS = {
    "matmul": (530, 290) if OLD_XLA else (340, 230),
    "native": (0.7, 32),
}


@pytest.mark.parametrize(
    ("backend", "optimizer"),
    [
        pytest.param("matmul", "adam", marks=pytest.mark.slow),
        pytest.param("matmul", "soap", marks=pytest.mark.slow),
        ("native", "adam"),
        pytest.param("native", "soap", marks=pytest.mark.slow),
    ],
)
def test_the_size_of_a_step(backend, optimizer):
    compiled = compile_steps(backend, optimizer)
    text = compiled.as_text()
    assert not re.search(r" convolution\(", text)
    calls = re.findall(r'custom_call_target="cae_jax_\w+?_(bce_and_grad|soap)"', text)
    expected = ["bce_and_grad", *(["soap"] if optimizer == "soap" else [])]
    assert sorted(calls) == (expected if backend == "native" else [])
    # The QR decompositions of three bases: no call of Python.
    others = re.findall(r'custom_call_target="lapack_s(?:geqrf|orgqr)_ffi"', text)
    assert len(others) == (6 if (backend, optimizer) == ("matmul", "soap") else 0)
    assert text.count(" custom-call(") == len(calls) + len(others)
    megabytes, fusions = BOUNDS[backend]
    if optimizer == "soap":  # of XLA's, most of it in the branch that every tenth step takes
        more = {"matmul": (5, 80), "native": (0, 25)}[backend]
        megabytes, fusions = megabytes + more[0], fusions + more[1]
    moved = compiled.cost_analysis()["bytes accessed"] - EXAMPLES * 28 * 28
    assert moved / 1e6 < megabytes
    assert text.count(" fusion(") < fusions


@pytest.mark.slow
def test_the_xla_backend_does_convolve():
    assert re.search(r" convolution\(", compile_steps("xla").as_text())


@pytest.mark.slow
def test_nothing_crosses_to_or_from_the_host_within_an_epoch(test_images):
    model = autoencoders.build(cae_jax.TrainConfig(model="simple"), nnx.Rngs(0))
    optimizer = build_optimizer(cae_jax.TrainConfig(), 10)
    run_steps = make_run_steps(nnx.graphdef(model), optimizer, build_corruption("mix"), XLA)
    key, epoch, images, start, stop = jax.device_put(
        (jax.random.key(0), np.int32(1), test_images[:300], 0, 3)
    )
    state = init_state(model, optimizer, steps=3)
    with jax.transfer_guard("disallow"):
        batches = epoch_batches(key, epoch, examples=300, batch_size=BATCH)
        state = run_steps(state, images, batches, key, start, stop)
    assert (np.asarray(state.losses_S) > 0).all()
    with pytest.raises(Exception, match="transfer"), jax.transfer_guard("disallow"):
        jnp.sin(test_images[:1].astype(np.float32))  # the guard does guard


def test_nothing_is_compiled_after_the_first_epoch(tmp_path, data_dir):
    compilations, counts = [], []

    def listen(event, duration, **_):
        if "compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        note = lambda _: counts.append(len(compilations))  # noqa: E731
        cae_jax.fit(DENSE, tmp_path / "run", data_dir=data_dir, on_epoch=note)
    finally:
        jax.monitoring.clear_event_listeners()
    assert counts[0] > 0
    assert counts == counts[:1] * DENSE.epochs
