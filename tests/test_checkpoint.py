"""Which checkpoints stay, and that they give back what was saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cae_jax
from cae_jax import models, train
from cae_jax.checkpoint import open_checkpoints
from cae_jax.optimizer import build_optimizer

CONFIG = cae_jax.TrainConfig(features=(2, 2, 2))


def state_at(step):
    """A state whose every value tells its step."""
    model = models.build(CONFIG, nnx.Rngs(0))
    state = train.init_state(model, build_optimizer(CONFIG, total_steps=10))
    filled = jax.tree.map(lambda leaf: jnp.full_like(leaf, step), state)
    return filled._replace(step=jnp.int32(step))


def test_the_newest_three_and_the_best_stay_also_when_opened_again(tmp_path):
    losses = {1: 0.5, 2: 0.2, 3: 0.4, 4: 0.3, 5: 0.6, 6: 0.7}
    for steps in ([1, 2, 3, 4], [5, 6]):
        with open_checkpoints(tmp_path) as checkpoints:
            for step in steps:
                checkpoints.save(state_at(step), losses[step])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5", "6"]
    with open_checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 6
        assert checkpoints.best_step() == 2


def test_what_is_restored_is_what_was_saved(tmp_path):
    saved, like = state_at(7), state_at(0)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved, 0.5)
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(7, like)
        params = checkpoints.restore_params(7, like.params)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for ours, wanted in zip(
        jax.tree.leaves((restored, params)), jax.tree.leaves((saved, saved.params)), strict=True
    ):
        assert ours.dtype == wanted.dtype
        np.testing.assert_array_equal(ours, wanted)
    assert not jax.tree.leaves(like.params)[0].any()  # `like` stays as it was


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), 0.5)
        other = models.build(cae_jax.TrainConfig(model="simple"), nnx.Rngs(0))
        with pytest.raises(cae_jax.UserError, match=r"checkpoint .*/1 cannot be restored"):
            checkpoints.restore_params(1, nnx.state(other, nnx.Param))
        wider = models.build(cae_jax.TrainConfig(features=(4, 2, 2)), nnx.Rngs(0))
        with pytest.raises(cae_jax.UserError, match=r"checkpoint .*/1 cannot be restored"):
            checkpoints.restore_params(1, nnx.state(wider, nnx.Param))


def test_a_truncated_checkpoint_is_refused(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), 0.5)
    for path in (tmp_path / "1" / "params").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with (
        open_checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(cae_jax.UserError, match=r"checkpoint .*/1 cannot be restored"),
    ):
        checkpoints.restore_params(1, state_at(0).params)
