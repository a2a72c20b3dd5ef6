"""Memory, leaks, and many readers at once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cae_jax.runs import history
from tests.conftest import ROOT
from tests.runs.test_reliability import TRAIN, finish, start, until

# A process of its own, because the system keeps one peak for all children of a process.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count in other units")
@pytest.mark.parametrize("backend", ["auto", "matmul", "xla"])
def test_all_images_stay_below_the_memory_that_is_promised(data_dir, tmp_path, backend):
    command = (sys.executable, "-c", PEAK, *TRAIN, "--epochs", 1, "--backend", backend)
    code, out, err = finish(start(tmp_path / "run", data_dir, *command))
    assert code == 0, err
    (row,) = history.read(tmp_path / "run" / "history.csv")
    assert row.step == 469
    assert int(out.splitlines()[-1]) < 1024 * 1024  # kB


COUNTS = """
import os, sys, threading
import cae_jax

def look(*_):
    pages = int(open("/proc/self/statm").read().split()[1])
    kib = pages * os.sysconf("SC_PAGESIZE") // 1024
    print("counts", kib, len(os.listdir("/proc/self/fd")), threading.active_count())

config = cae_jax.TrainConfig(train_examples=128, test_examples=50, epochs=200)
cae_jax.fit(config, sys.argv[1], data_dir=sys.argv[2], on_epoch=look)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
def test_two_hundred_epochs_leak_nothing(data_dir, tmp_path):
    # With an arena of memory for each thread the C library takes some MiB more as threads meet.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", COUNTS, str(tmp_path / "run"), str(data_dir)]
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    lines = [line.split()[1:] for line in process.stdout.splitlines() if line.startswith("counts")]
    kib, files, threads = np.array(lines, int).T
    assert len(kib) == 200
    # A copy of the smallest things, the parameters with Adam's means, has 53 kB. Orbax keeps the
    # names of what it has written, 10 kB a save. The middle of ten epochs' growths, because the C
    # library takes a MiB now and then for all of them.
    assert np.median(np.diff(kib[60::10])) / 10 < 25
    # A save may be under way: the least of many epochs.
    for counts in (files, threads):
        assert counts[130:].min() <= counts[60:130].min()


@pytest.mark.slow
def test_eight_evaluations_at_once_of_a_run_in_training(data_dir, tmp_path):
    folder = tmp_path / "run"
    trainer = start(folder, data_dir, *TRAIN, "--train-examples", 20000, "--epochs", 100000)
    until((folder / "checkpoints" / "157").exists)
    command = [sys.executable, ROOT / "scripts" / "evaluate.py", folder, "--data-dir", data_dir]
    readers = [
        subprocess.Popen(
            list(map(str, [*command, "--json", tmp_path / f"{i}.json"])),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(8)
    ]
    errors = [reader.communicate(timeout=300)[1] for reader in readers]
    trainer.send_signal(signal.SIGTERM)
    assert finish(trainer)[0] == 128 + signal.SIGTERM
    assert errors == [""] * 8
    assert [reader.returncode for reader in readers] == [0] * 8
    # The parameters of one epoch have its loss; a mixture of two would have another.
    losses = np.array([row.val_loss for row in history.read(folder / "history.csv")])
    assert len(losses) > 8
    for i in range(8):
        _, row = json.loads((tmp_path / f"{i}.json").read_text())["rows"]
        assert np.abs(losses - row["bce"][0]).min() < 1e-6 * row["bce"][0] + 1e-7
