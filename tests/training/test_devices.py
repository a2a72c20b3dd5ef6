"""Trainings on several devices: the same bits for any number of them.

The devices are forced ones of a CPU, which JAX takes before its first use: in other processes.
"""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import cae_jax
from cae_jax.config import TrainConfig, to_dict
from cae_jax.runs import history
from cae_jax.training.devices import Devices
from tests.conftest import DENSE, ROOT, SMALL, needs_native
from tests.runs.test_reliability import assert_same_end

# Trains with each of some numbers of devices; of "3+2", the training with 3 is stopped.
TRAIN = """
import json, os, signal, sys
import cae_jax
from cae_jax.config import from_dict

members, folder, data_dir, options, *counts = sys.argv[1:]
members, options = [from_dict(each) for each in json.loads(members)], json.loads(options)
fit = cae_jax.fit_population if options.pop("many") else lambda configs, *args, **kwargs: (
    cae_jax.fit(configs[0], *args, **kwargs)
)

def stop(steps):
    if steps == 5:
        os.kill(os.getpid(), signal.SIGINT)

for count in counts:
    *first, last = map(int, count.split("+"))
    options |= {"data_dir": data_dir, "chunk_steps": 5}
    for devices in first:
        fit(members, f"{folder}/{count}", devices=devices, on_chunk=stop, **options)
    fit(members, f"{folder}/{count}", devices=last, **options)
"""


def train(folder, data_dir, members, counts, many=False, **options):
    configs = json.dumps(list(map(to_dict, members)))
    arguments = [configs, folder, data_dir, json.dumps({"many": many, **options}), *counts]
    process = subprocess.run(
        [sys.executable, "-c", TRAIN, *map(str, arguments)],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr
    assert ("Streaming" in process.stdout + process.stderr) == ("device_budget" in options)


def test_batches_are_cut_into_microbatches_that_fill_the_devices():
    batches = np.arange(20, dtype=np.int32).reshape(2, 10)
    cut = np.asarray(Devices(None, microbatches=4).cut(batches, 99))
    assert cut.tolist() == [
        [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 99, 99]],
        [[10, 11, 12], [13, 14, 15], [16, 17, 18], [19, 99, 99]],
    ]


def test_microbatches_have_the_gradient_of_the_batch(data_dir, tmp_path):
    """Also where the last microbatch is not full, and the last batch neither."""
    config = dataclasses.replace(DENSE, optimizer="sgd", batch_size=96, epochs=1)
    ends = [
        cae_jax.fit(
            dataclasses.replace(config, microbatches=count),
            tmp_path / str(count),
            data_dir=data_dir,
        )
        for count in (1, 7)
    ]
    losses = [[row.loss for row in end.history] for end in ends]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    for one, other in zip(*(jax.tree.leaves(end.autoencoder.params) for end in ends), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("devices", [0, 2])
def test_a_machine_has_so_many_devices(data_dir, tmp_path, devices):
    with pytest.raises(cae_jax.UserError, match=r"`devices` is .; this machine has 1 of cpu"):
        cae_jax.fit(DENSE, tmp_path / "run", data_dir=data_dir, devices=devices)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(("microbatches", "batch_size"), [(0, 8), (9, 8)])
def test_numbers_of_microbatches_are_checked(microbatches, batch_size):
    with pytest.raises(cae_jax.UserError, match=r"`microbatches` is .; it takes"):
        TrainConfig(microbatches=microbatches, batch_size=batch_size)


def test_any_number_of_devices_has_the_same_bits(data_dir, tmp_path):
    """Three, of which one has fewer microbatches, stopped and resumed by two."""
    config = dataclasses.replace(DENSE, microbatches=4)
    train(tmp_path, data_dir, [config], ["1", "3+2"])
    assert_same_end(tmp_path / "3+2", tmp_path / "1")


CASES = [
    ("xla", "adam", "gaussian"),
    ("matmul", "soap", "gaussian"),
    pytest.param("native", "soap", "gaussian", marks=needs_native),
]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "optimizer", "noise"), CASES)
def test_devices_and_chunks_have_the_same_bits(backend, optimizer, noise, data_dir, tmp_path):
    config = dataclasses.replace(
        SMALL, microbatches=8, batch_size=100, optimizer=optimizer, noise=noise, epochs=2
    )
    resident, streamed = ["2", "3+8"], "4+1"
    train(tmp_path, data_dir, [config], ["1", *resident], backend=backend)
    budget = {"backend": backend, "device_budget": "4.4MB"}
    train(tmp_path / "streamed", data_dir, [config], [streamed], **budget)
    for other in (*resident, f"streamed/{streamed}"):
        assert_same_end(tmp_path / other, tmp_path / "1")


@pytest.mark.slow
def test_a_place_without_a_member_changes_no_other(data_dir, tmp_path):
    """Five members at once on three devices, of which one computes one member twice."""
    members = [dataclasses.replace(DENSE, seed=seed, noise="gaussian") for seed in range(5)]
    train(tmp_path, data_dir, members, ["3"], many=True, members_per_program=5, backend="matmul")
    for seed in (0, 4):
        alone = cae_jax.fit(members[seed], tmp_path / str(seed), data_dir=data_dir)
        rows = history.read(tmp_path / "3" / f"seed={seed}" / "history.csv")
        losses = [
            [(row.loss, row.val_loss, row.val_psnr) for row in x] for x in (rows, alone.history)
        ]
        np.testing.assert_allclose(*losses, rtol=1e-4)


COUNT = """
import jax
from cae_jax.config import TrainConfig, resolved
from cae_jax.models import autoencoders
from cae_jax.ops import hlo
from cae_jax.ops.backend import MATMUL
from cae_jax.training import programs
from cae_jax.training.devices import Devices

config = resolved(TrainConfig(microbatches=8))
members = [resolved(TrainConfig(seed=seed)) for seed in range(8)]
for group in ([config], members):
    devices = Devices.of(jax.devices(), group[0], len(group))
    model = autoencoders.abstract(group[0])
    for each in (programs.training, programs.evaluation)[: len(group)]:
        program = each(group, model, MATMUL, 1000, devices=devices)
        print(hlo.parse(program.compile().as_text()).collectives())
"""


@pytest.mark.slow
def test_a_step_has_one_gather_and_the_members_of_a_population_none():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COUNT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    # For each microbatch the 4,385 parameters, the loss, and the number of images.
    expected = [{"all-gather": 8 * (4385 + 2) * 4}, {}, {}]
    assert done.stdout.splitlines() == list(map(str, expected)), done.stderr


@pytest.mark.slow
@needs_native
def test_members_on_devices_of_their_own_are_ordinary_runs(data_dir, tmp_path):
    """Five members in groups of three and two, and of two, two and one."""
    members = [dataclasses.replace(SMALL, seed=seed, noise="gaussian") for seed in range(5)]
    train(tmp_path, data_dir, members, ["3", "2+2"], many=True, backend="native")
    for seed in (0, 4):
        cae_jax.fit(members[seed], tmp_path / str(seed), data_dir=data_dir, backend="native")
        for count in ("3", "2+2"):
            assert_same_end(tmp_path / count / f"seed={seed}", tmp_path / str(seed))
