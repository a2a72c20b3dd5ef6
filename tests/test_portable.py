"""Checkpoints of other versions, and of other numbers of devices."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import cae_jax
from benchmarks.kill_and_resume import leaves_at
from cae_jax.runs import history
from cae_jax.runs.checkpoints import open_checkpoints
from tests.conftest import ROOT
from tests.test_checkpoint import CONFIG, state_at

# Written by tests/make_golden.py, and never again.
FORMAT1 = Path(__file__).parent / "golden" / "format1"


def test_a_golden_checkpoint_is_read_bit_by_bit():
    expected = json.loads(FORMAT1.with_suffix(".json").read_text())
    for step, leaves in expected.items():
        ours = list(leaves_at(FORMAT1, int(step)).values())
        assert len(ours) == len(leaves) == 20
        for leaf, wanted in zip(ours, leaves, strict=True):
            np.testing.assert_array_equal(leaf, np.array(wanted, leaf.dtype))


def test_a_golden_run_is_used_and_goes_on(data_dir, tmp_path, capsys):
    folder = tmp_path / "format1"
    shutil.copytree(FORMAT1, folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    wanted = history.read(FORMAT1 / "history.csv")
    result = cae_jax.fit(folder.read_config(folder), folder, data_dir=data_dir, backend="xla")
    assert "resumes after step 2" in capsys.readouterr().out
    assert result.history[0] == wanted[0]
    # Another machine, or version, may draw and round otherwise.
    assert result.history[1].loss == pytest.approx(wanted[1].loss, rel=1e-3)
    assert result.history[1].val_loss == pytest.approx(wanted[1].val_loss, rel=1e-3)


MANY = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from cae_jax.runs.checkpoints import open_checkpoints
from tests.test_checkpoint import CONFIG, state_at

def spread(state, count):
    mesh = Mesh(jax.devices()[:count], "data")
    def put(leaf):
        divides = leaf.ndim and leaf.shape[-1] % count == 0
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "data") if divides else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))
    return jax.tree.map(put, state)

state = spread(state_at(7), 2)
assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
with open_checkpoints(sys.argv[1], CONFIG) as checkpoints:
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


def test_what_many_devices_wrote_any_number_reads(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300, cwd=ROOT)
    assert len(jax.devices("cpu")) == 1
    with open_checkpoints(tmp_path, CONFIG) as checkpoints:
        read = checkpoints.restore(checkpoints.find()[0].step, state_at(0))
    for leaf, wanted in zip(jax.tree.leaves(read), jax.tree.leaves(state_at(7)), strict=True):
        np.testing.assert_array_equal(leaf, wanted)
