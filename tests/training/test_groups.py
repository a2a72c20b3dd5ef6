"""Groups of models, trained by one program or one after the other by the same."""

import dataclasses
import types
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cae_jax
from cae_jax.models import autoencoders
from cae_jax.ops import cuda_graphs, hlo
from cae_jax.ops.backend import MATMUL, choose
from cae_jax.training import programs, soap, trainer
from cae_jax.training.step import make_keys
from cae_jax.training.trainer import Trainer, initial_state
from tests.conftest import DENSE, SMALL, needs_native

NUMBERS = [(0, 2e-2), (3, 2e-2), (0, 5e-3)]
MEMBERS = [dataclasses.replace(DENSE, seed=s, learning_rate=lr) for s, lr in NUMBERS]


@pytest.fixture(autouse=True)
def _highest_precision():
    """Without TF32, whose rounding depends on the shape of a matmul."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def images(test_images):
    return test_images[:1000], test_images[1000:1300]


def start(configs):
    """The model whose structure counts, and the state of the group before the first step."""
    models = [autoencoders.build(c, nnx.Rngs(params=make_keys(c.seed).init)) for c in configs]
    states = [initial_state(c, m, 1000) for c, m in zip(configs, models, strict=True)]
    return models[0], jax.device_put(trainer.stack(states))


def train(group, state, stop):
    """Some steps of the first epoch; the states of the members, their losses and scores."""
    chunk = group.run(state, 1, 0, stop)
    assert chunk.finite_M.all()
    count = len(group.members)
    states = [trainer.member(chunk.state, k, count) for k in range(count)]
    return states, chunk.losses_MxS, group.validation.evaluate(chunk.state.params)


def train_alone(config, backend, images, stop):
    model, state = start([config])
    states, losses, scores = train(Trainer([config], model, backend, *images), state, stop)
    return states[0], losses[0], scores[0]


@pytest.mark.slow
@needs_native
def test_members_in_turn_have_the_bits_of_a_training_alone(images):
    configs = [
        dataclasses.replace(SMALL, seed=seed, noise="gaussian", train_examples=None)
        for seed in (0, 7)
    ]
    native = choose(autoencoders.abstract(SMALL).topology, "native")
    model, _ = start(configs)
    first = Trainer(configs[:1], model, native, *images)
    found = []
    for group, config in ((first, configs[0]), (first.with_members(configs[1:]), configs[1])):
        [state], losses, scores = train(group, start([config])[1], 8)
        alone, losses_alone, score = train_alone(config, native, images, 8)
        jax.tree.map(np.testing.assert_array_equal, state, alone)
        np.testing.assert_array_equal(losses[0], losses_alone)
        assert scores == [score]
        found += scores
    assert found[0].val_psnr_input != found[1].val_psnr_input


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["salt_and_pepper", "none"])
def test_members_together_train_as_alone(images, noise):
    """The second group takes the programs of the first."""
    configs = [dataclasses.replace(each, noise=noise, on_nan="skip") for each in MEMBERS]
    model, _ = start(configs)
    fields = programs.swept(configs)
    first = Trainer(configs[:2], model, MATMUL, *images, fields)
    for group in (first, first.with_members(configs[1:])):
        states, losses, scores = train(group, start(group.members)[1], 4)
        for k, config in enumerate(group.members):
            alone, losses_alone, score = train_alone(config, MATMUL, images, 4)
            assert states[k].step == alone.step == 4
            for ours, theirs in zip(
                jax.tree.leaves(states[k]), jax.tree.leaves(alone), strict=True
            ):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(losses[k], losses_alone, rtol=1e-6)
            assert [s for s in scores[k] if s is not None] == pytest.approx(
                [s for s in score if s is not None], rel=1e-5
            )
        assert losses[0][0] != losses[1][0]  # the members differ in their seed


@pytest.mark.slow
def test_a_convolutional_member_trains_together_as_alone(images):
    configs = [
        dataclasses.replace(SMALL, optimizer="soap", seed=seed, b2=b2)
        for seed, b2 in ((0, 0.95), (1, 0.99))
    ]
    backend = choose(autoencoders.abstract(SMALL).topology, "xla")
    model, state = start(configs)
    _, losses, _ = train(Trainer(configs, model, backend, *images, ["b2"]), state, 4)
    for k, config in enumerate(configs):
        _, losses_alone, _ = train_alone(config, backend, images, 4)
        np.testing.assert_allclose(losses[k], losses_alone, rtol=1e-5)


def test_a_group_of_one_has_no_axis_for_its_members():
    _, state = start(MEMBERS[:1])
    assert trainer.stack([state]) is trainer.member(state, 0, 1) is state
    _, several = start(MEMBERS)
    jax.tree.map(np.testing.assert_array_equal, trainer.member(several, 0, 3), state)
    assert several.step.shape == ()


def test_a_member_that_is_not_finite_leaves_the_others_alone(images):
    configs = [MEMBERS[0], dataclasses.replace(MEMBERS[0], learning_rate=1e38)]
    model, state = start(configs)
    group = Trainer(configs, model, MATMUL, *images, ["learning_rate"])
    chunk = group.run(state, 1, 0, 8)
    assert chunk.finite_M.tolist() == [True, False]
    _, losses_alone, _ = train_alone(configs[0], MATMUL, images, 8)
    np.testing.assert_allclose(chunk.losses_MxS[0], losses_alone, rtol=1e-5)
    assert not np.isfinite(chunk.losses_MxS[1]).all()


def test_each_member_refreshes_its_bases_when_it_is_due():
    """With skipped updates the members count differently: one refreshes, the other does not."""
    kernels = [jnp.ones((2, 1, 3, 2))]
    old = [jnp.broadcast_to(jnp.eye(n), (2, 1, n, n)) for n in (3, 2)]
    factors = [jax.random.normal(jax.random.key(n), (2, 1, n, n)) for n in (3, 2)]
    due = jnp.array([True, False])
    mean, bases = jax.vmap(soap._refresh_if)(due, kernels, [old], [factors])
    for side, factor in enumerate(factors):
        expected = np.linalg.qr(np.asarray(factor[0, 0]))[0]
        np.testing.assert_allclose(bases[0][side][0, 0], expected, atol=1e-6)
        np.testing.assert_array_equal(bases[0][side][1], old[side][1])
    np.testing.assert_array_equal(mean[0][1], kernels[0][1])
    assert not np.allclose(mean[0][0], kernels[0][0])


@pytest.mark.slow
def test_bases_are_refreshed_in_a_branch_for_all_members():
    configs = [dataclasses.replace(SMALL, optimizer="soap", seed=seed) for seed in range(3)]
    program = programs.training(configs, autoencoders.abstract(SMALL), MATMUL, 1000)
    kernels = hlo.parse(program.compile().as_text()).kernels()
    assert kernels.step["conditional"] == 1
    assert kernels.branches.total() > 6  # six QR decompositions, not in each step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "`batch_size` differs among the members (128, 64)"),
        ({"epochs": 5}, "`epochs` differs among the members (2, 5)"),
        ({"model": "deep"}, "`model` differs among the members (simple, deep)"),
        ({"optimizer": "sgd"}, "`optimizer` differs among the members (adam, sgd)"),
        ({}, "two members have the same config"),
    ],
)
def test_members_that_share_no_program_are_refused(changes, message):
    with pytest.raises(cae_jax.UserError) as error:
        programs.check_members([DENSE, dataclasses.replace(DENSE, **changes)])
    assert message in str(error.value)
    programs.check_members([DENSE])


def test_the_fields_that_are_swept():
    assert programs.swept(MEMBERS) == ["learning_rate"]
    assert programs.swept(MEMBERS[:2]) == []


def test_the_estimate_of_memory_counts_states_and_orders():
    """By hand: a state has the parameters and two moments, and the losses of eight steps."""
    model = autoencoders.abstract(DENSE)
    parameters = 784 * 32 + 32 + 32 * 784 + 784
    state, order = 4 * (3 * parameters + 8), 4 * 8 * 128
    held, more = programs.needed_bytes(DENSE, model, 1000)
    assert 2 * state + order <= held < 2 * state + order + 200  # a few scalars
    least = state + model.topology.training_bytes(128)
    assert least <= more < least + 200


class FakeLowered:
    """A lowered program whose compiler knows some options."""

    def __init__(self, error):
        self.error, self.calls = error, Counter()

    def compile(self, compiler_options=None):
        self.calls["with" if compiler_options else "without"] += 1
        if compiler_options and self.error:
            raise self.error
        return "compiled"


def test_loops_are_captured_on_a_gpu_where_xla_knows_how(monkeypatch):
    def compiled(platform, error=None, kind="NVIDIA H100 80GB HBM3"):
        lowered = FakeLowered(error)
        device = types.SimpleNamespace(platform=platform, device_kind=kind)
        assert cuda_graphs.compile_loop(lowered, device) == "compiled"
        return dict(lowered.calls)

    unknown = jax.errors.JaxRuntimeError(
        "INVALID_ARGUMENT: No such compile option: 'xla_gpu_graph_min_graph_size'"
    )
    assert compiled("cpu") == compiled("tpu") == {"without": 1}
    assert compiled("gpu") == {"with": 1}
    assert compiled("gpu", kind="AMD Instinct MI300X") == {"without": 1}
    assert compiled("gpu", unknown) == {"with": 1, "without": 1}
    with pytest.raises(jax.errors.JaxRuntimeError, match="memory"):
        compiled("gpu", jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=")
    assert compiled("gpu") == {"without": 1}
