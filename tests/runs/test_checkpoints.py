"""Which checkpoints stay, that they give back what was saved, and what is done about damage."""

import asyncio
import gc
import hashlib
import importlib
import json
import shutil
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cae_jax
from cae_jax.models import autoencoders
from cae_jax.runs import manifest, orbax_io
from cae_jax.runs.checkpoints import Checkpoint, Checkpoints
from cae_jax.training.optimizer import build_optimizer
from cae_jax.training.step import init_state

CONFIG = cae_jax.TrainConfig(features=(2, 2, 2))


def state_at(step):
    """A state whose every value tells its step."""
    model = autoencoders.build(CONFIG, nnx.Rngs(0))
    state = init_state(model, build_optimizer(CONFIG, total_steps=10), steps=5)
    filled = jax.tree.map(lambda leaf: jnp.full_like(leaf, step), state)
    return filled._replace(step=jnp.int32(step))


def save(folder, losses):
    """Saves states at steps with losses."""
    with Checkpoints(folder, CONFIG) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(state_at(step), loss)


def find(folder, config=CONFIG, **options):
    with Checkpoints(folder, config) as checkpoints:
        return checkpoints.find(**options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_three_and_the_best_stay_also_when_opened_again(tmp_path):
    save(tmp_path, {1: 0.5, 2: 0.2, 3: 0.4, 4: 0.3})
    save(tmp_path, {5: 0.6, 6: 0.7})
    assert names(tmp_path) == ["2", "4", "5", "6"]
    assert find(tmp_path) == (Checkpoint(6, 0.7), {})
    assert find(tmp_path, best=True) == (Checkpoint(2, 0.2), {})


def test_one_within_an_epoch_stays_until_the_next(tmp_path):
    save(tmp_path, {1: 0.1, 2: 0.5, 3: 0.4, 4: 0.3, 5: None})
    assert names(tmp_path) == ["1", "2", "3", "4", "5"]
    assert find(tmp_path)[0] == Checkpoint(5, None)
    assert find(tmp_path, best=True)[0] == Checkpoint(1, 0.1)
    save(tmp_path, {5: 0.2})  # the same step again, now with its loss
    assert names(tmp_path) == ["1", "3", "4", "5"]
    assert find(tmp_path)[0] == Checkpoint(5, 0.2)


def test_what_is_restored_is_what_was_saved(tmp_path):
    saved, like = state_at(7), state_at(0)
    save(tmp_path, {7: 0.5})
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        restored = checkpoints.restore(7, like)
        params = checkpoints.restore(7, like.params)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for ours, wanted in zip(
        jax.tree.leaves((restored, params)), jax.tree.leaves((saved, saved.params)), strict=True
    ):
        assert ours.dtype == wanted.dtype
        np.testing.assert_array_equal(ours, wanted)
    assert not jax.tree.leaves(like.params)[0].any()  # `like` stays as it was


def test_what_is_donated_after_save_is_saved_all_the_same(tmp_path):
    state = state_at(3)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(state, 0.5)
        for leaf in jax.tree.leaves(state):
            leaf.delete()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert int(checkpoints.restore(3, state_at(0)).losses_S.sum()) == 15


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save(tmp_path, {1: 0.5})
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        for config in (
            cae_jax.TrainConfig(model="simple"),
            cae_jax.TrainConfig(features=(4, 2, 2)),
        ):
            like = nnx.state(autoencoders.build(config, nnx.Rngs(0)), nnx.Param)
            with pytest.raises(cae_jax.UserError, match=r"checkpoint .*/1 does not fit this model"):
                checkpoints.restore(1, like)


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    save(tmp_path, {1: 0.5})
    other = cae_jax.TrainConfig(features=(2, 2, 2), epochs=30)
    with pytest.raises(cae_jax.UserError, match=r"another config .*epochs \(20 there, 30 now\)"):
        find(tmp_path, other)


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 2)
    save(tmp_path, {1: 0.5})
    monkeypatch.undo()
    with pytest.raises(cae_jax.UserError, match=r"has format 2; .* up to 1; update cae-jax"):
        find(tmp_path)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    save(folder, {1: 0.2, 2: 0.5})
    return folder


def test_the_sums_are_those_of_the_files(two):
    metadata = json.loads((two / "2" / "manifest.json").read_text())
    files = [path for path in (two / "2").rglob("*") if path.is_file()]
    assert len(metadata["files"]) == len(files) - 1 > 10
    for name, digest in metadata["files"].items():
        assert hashlib.sha256((two / "2" / name).read_bytes()).hexdigest() == digest


def test_a_flipped_bit_is_found_in_every_file(two, tmp_path):
    shutil.copytree(two, tmp_path / "runs")
    rng = np.random.default_rng(0)
    for path in sorted((tmp_path / "runs" / "2").rglob("*")):
        if path.is_dir():
            continue
        intact = path.read_bytes()
        size = 8 * len(intact)
        flipped = [b"\0"]  # Orbax's marker is empty: a byte more
        if size:
            bits = {0, size - 1, *rng.integers(0, size, 3).tolist()}
            number = int.from_bytes(intact, "little")
            flipped = [(number ^ 1 << bit).to_bytes(len(intact), "little") for bit in bits]
        for damaged in flipped:
            path.write_bytes(damaged)
            found, damage = find(tmp_path / "runs")
            assert found == Checkpoint(1, 0.2)
            assert str(path) in damage[2]
        path.write_bytes(intact)
    assert find(tmp_path / "runs") == (Checkpoint(2, 0.5), {})


DAMAGE = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has changed"),
    "empty": (lambda path: path.write_bytes(b""), "has changed"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "a link": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "has changed|missing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["params/manifest.ocdbt", "training/_METADATA"])
def test_other_damage_is_found_and_named(two, tmp_path, damage, file):
    shutil.copytree(two, tmp_path / "runs")
    harm, message = DAMAGE[damage]
    harm(tmp_path / "runs" / "2" / file)
    found, problems = find(tmp_path / "runs")
    assert found == Checkpoint(1, 0.2)
    assert file.split("/")[0] in problems[2]
    with pytest.raises(manifest.DamagedError, match=message):
        manifest.verify(tmp_path / "runs" / "2")


def test_a_copy_under_another_step_does_not_hide_damage(two, tmp_path):
    shutil.copytree(two, tmp_path / "runs")
    shutil.copytree(two / "2", tmp_path / "runs" / "99")
    path = next((tmp_path / "runs" / "2" / "params").rglob("d/*"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    found, damage = find(tmp_path / "runs")
    assert found == Checkpoint(1, 0.2)
    assert damage[99].endswith("99 holds step 2")
    assert damage[2] == f"{path} has changed"


def test_only_checkpoints_are_cleaned_away(tmp_path):
    for name in ("8.tmp", "9.tmp-removed", "7.tmp.orbax-checkpoint-tmp", "notes.tmp", "a8.tmp"):
        (tmp_path / name).mkdir()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.clean()
    assert names(tmp_path) == ["a8.tmp", "notes.tmp"]


def test_a_checkpoint_without_a_manifest_is_damaged(two, tmp_path):
    shutil.copytree(two, tmp_path / "runs")
    (tmp_path / "runs" / "1" / "manifest.json").unlink()
    found, damage = find(tmp_path / "runs", best=True)
    assert found == Checkpoint(2, 0.5)
    assert damage == {}  # its loss is not known: it is the last that is looked at
    (tmp_path / "runs" / "2" / "manifest.json").write_text("[]")
    with pytest.raises(cae_jax.UserError, match=r"is intact: .*2/manifest.* no manifest; .*1/man"):
        find(tmp_path / "runs")
    assert names(tmp_path / "runs") == ["1", "2"]


def test_what_was_set_aside_does_not_count(two, tmp_path):
    shutil.copytree(two, tmp_path / "runs")
    with Checkpoints(tmp_path / "runs", CONFIG) as checkpoints:
        assert checkpoints.set_aside(2, tmp_path / "damaged").name == "2-0"
    shutil.copytree(two / "2", tmp_path / "runs" / "2")
    with Checkpoints(tmp_path / "runs", CONFIG) as checkpoints:
        assert checkpoints.set_aside(2, tmp_path / "damaged").name == "2-1"
        assert checkpoints.find()[0] == Checkpoint(1, 0.2)


def test_a_save_that_was_killed_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, {1: 0.5})

    def killed(*_):
        raise KeyboardInterrupt  # not an error: nothing tidies up

    monkeypatch.setattr(manifest, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, {2: 0.4})
    monkeypatch.undo()
    assert names(tmp_path) == ["1", "2.tmp"]
    assert find(tmp_path)[0] == Checkpoint(1, 0.5)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.clean()
    assert names(tmp_path) == ["1"]


def test_a_removal_that_was_killed_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, {1: 0.9, 2: 0.4, 3: 0.3, 4: 0.2})
    assert names(tmp_path) == ["2", "3", "4"]

    def killed(path, **_):
        (path / "manifest.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, {5: 0.1})
    monkeypatch.undo()
    assert names(tmp_path) == ["2.tmp-removed", "3", "4", "5"]
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.clean()
    assert names(tmp_path) == ["3", "4", "5"]


def test_a_save_that_failed_is_told_at_the_next_and_not_trusted(tmp_path, monkeypatch):
    save(tmp_path, {1: 0.5})

    def full(*_):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        monkeypatch.setattr(manifest, "write", full)
        checkpoints.save(state_at(2), 0.4)
        with pytest.raises(cae_jax.UserError, match=r"checkpoint .*/2 cannot be .*No space left"):
            checkpoints.save(state_at(3), 0.3)
        monkeypatch.undo()
        checkpoints.save(state_at(3), 0.3)
    assert names(tmp_path) == ["1", "3"]


# As TensorStore words it: it may leave out the number of the error.
FULL = (
    'RESOURCE_EXHAUSTED: Error writing "conv1.bias/0" in OCDBT database at local file '
    '"{path}/params.orbax-checkpoint-tmp/ocdbt.process_0/": Failed writing: "{path}/d/69": '
    "Failed to write 287 bytes to file 8: No space left on device{end}"
)


def test_of_all_writes_that_fail_one_is_told(tmp_path, monkeypatch, caplog):
    """The others stay behind in asyncio's futures, which tell when they are removed."""

    def save(path, _):
        futures = [loop.create_future() for _ in range(3)]
        for future, place in zip(futures, (path, path, "elsewhere"), strict=True):
            name = f"{place}.orbax-checkpoint-tmp"
            future.set_exception(ValueError(FULL.format(path=name, end=" [os_error_code='28']")))
        raise ValueError(FULL.format(path=path, end=' [tensorstore_spec={"context": {}}]'))

    loop = asyncio.new_event_loop()
    monkeypatch.setattr(orbax_io.ocp, "save_checkpointables", save)
    with (
        pytest.raises(cae_jax.UserError, match=r"cannot be written \(No space left on device\); "),
        Checkpoints(tmp_path, CONFIG) as checkpoints,
    ):
        checkpoints.save(state_at(1), None)
    gc.collect()
    loop.close()
    (record,) = caplog.records
    assert "elsewhere" in record.getMessage()


def test_failures_leave_one_hook_however_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    for _ in range(3):
        with pytest.raises(Exception, match="nowhere"):
            orbax_io.read(tmp_path / "nowhere", state_at(1))
    assert sys.unraisablehook.args == (sys.__unraisablehook__,)


async def _background_serialize():
    """Named as one of Orbax."""


async def other():
    """Not of Orbax."""


def test_writes_that_never_begin_are_not_told():
    """Orbax leaves their coroutines behind."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        importlib.reload(orbax_io)
        _background_serialize()
        other()
        gc.collect()
    assert [str(warning.message) for warning in told] == ["coroutine 'other' was never awaited"]
