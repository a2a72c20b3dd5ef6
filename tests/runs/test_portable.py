"""Checkpoints of other versions, and of other numbers of devices."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint
import pytest

import cae_jax
from benchmarks.kill_and_resume import leaves_at
from cae_jax.runs import history, orbax_io
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.folder import read_config
from tests.conftest import ROOT
from tests.runs.test_checkpoints import CONFIG, state_at

# Written by tests/make_golden.py, and never again.
FORMAT1 = ROOT / "tests" / "golden" / "format1"


class OlderApi:
    """The two functions that `orbax_io` uses, by the API that Orbax had before its `v1`."""

    def _checkpointer(self, items):
        handlers = {name: orbax.checkpoint.StandardCheckpointHandler() for name in items}
        handler = orbax.checkpoint.CompositeCheckpointHandler(**handlers)
        return orbax.checkpoint.Checkpointer(handler)

    def save_checkpointables(self, folder, items):
        args = orbax.checkpoint.args
        saves = {name: args.StandardSave(item) for name, item in items.items()}
        with self._checkpointer(items) as checkpointer:
            checkpointer.save(folder, args.Composite(**saves))

    def load_checkpointables(self, folder, items):
        args = orbax.checkpoint.args
        restores = {name: args.StandardRestore(item) for name, item in items.items()}
        with self._checkpointer(items) as checkpointer:
            return checkpointer.restore(folder, args.Composite(**restores))


APIS = {"older": OlderApi(), "v1": orbax_io.ocp}


@pytest.mark.parametrize("api", APIS)
def test_a_golden_checkpoint_is_read_bit_by_bit(api, monkeypatch):
    monkeypatch.setattr(orbax_io, "ocp", APIS[api])
    expected = json.loads(FORMAT1.with_suffix(".json").read_text())
    for step, leaves in expected.items():
        ours = list(leaves_at(FORMAT1, int(step)).values())
        assert len(ours) == len(leaves) == 20
        for leaf, wanted in zip(ours, leaves, strict=True):
            np.testing.assert_array_equal(leaf, np.array(wanted, leaf.dtype))


@pytest.mark.parametrize(("writer", "reader"), [("older", "v1"), ("v1", "older")])
def test_each_api_reads_what_the_other_wrote(writer, reader, tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_io, "ocp", APIS[writer])
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(state_at(7), 0.5)
    monkeypatch.setattr(orbax_io, "ocp", APIS[reader])
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        read = checkpoints.restore(7, state_at(0))
    for leaf, wanted in zip(jax.tree.leaves(read), jax.tree.leaves(state_at(7)), strict=True):
        assert leaf.dtype == wanted.dtype
        np.testing.assert_array_equal(leaf, wanted)


def test_a_golden_run_is_used_and_goes_on(data_dir, tmp_path, capsys):
    folder = tmp_path / "format1"
    shutil.copytree(FORMAT1, folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    wanted = history.read(FORMAT1 / "history.csv")
    result = cae_jax.fit(read_config(folder), folder, data_dir=data_dir, backend="xla")
    assert "resumes after step 2" in capsys.readouterr().out
    assert result.history[0] == wanted[0]
    # Another machine, or version, may draw and round otherwise.
    assert result.history[1].loss == pytest.approx(wanted[1].loss, rel=1e-3)
    assert result.history[1].val_loss == pytest.approx(wanted[1].val_loss, rel=1e-3)


MANY = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from cae_jax.runs.checkpoints import Checkpoints
from tests.runs.test_checkpoints import CONFIG, state_at

def spread(state, count):
    mesh = Mesh(jax.devices()[:count], "data")
    def put(leaf):
        divides = leaf.ndim and leaf.shape[-1] % count == 0
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "data") if divides else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))
    return jax.tree.map(put, state)

state = spread(state_at(7), 2)
assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
with Checkpoints(sys.argv[1], CONFIG) as checkpoints:
    checkpoints.save(state, 0.5)
    checkpoints.wait()
    for count in (1, 2, 4):
        like = spread(state_at(0), count)
        read = checkpoints.restore(checkpoints.find()[0].step, like)
        for leaf, wanted, place in zip(*map(jax.tree.leaves, (read, state, like)), strict=True):
            assert leaf.sharding == place.sharding
            assert len(leaf.sharding.device_set) == count
            np.testing.assert_array_equal(leaf, wanted)
"""


@pytest.mark.slow
def test_what_many_devices_wrote_any_number_reads(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300, cwd=ROOT)
    assert len(jax.devices("cpu")) == 1
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        read = checkpoints.restore(checkpoints.find()[0].step, state_at(0))
    for leaf, wanted in zip(jax.tree.leaves(read), jax.tree.leaves(state_at(7)), strict=True):
        np.testing.assert_array_equal(leaf, wanted)
