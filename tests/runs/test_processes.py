"""Processes that train one run together: the same bits as one, signals to any of them, deaths."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from cae_jax.runs.peers import EXIT
from tests.conftest import ROOT, needs_native
from tests.runs.test_reliability import assert_same_end, until

TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py"), "--train-examples", "1000"]
TRAIN += ["--test-examples", "300", "--batch-size", "100", "--microbatches", "8"]
TRAIN += ["--noise", "gaussian", "--chunk-steps", "5"]


@contextlib.contextmanager
def training(folder, data_dir, *flags, processes=1, devices=1, own=None):
    """The processes of a training, which are killed at the end."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    command = [*TRAIN, "--workdir", folder, "--data-dir", data_dir, "--devices", devices, *flags]
    command += ["--coordinator", f"localhost:{port}", "--num-processes", processes]
    started = [
        subprocess.Popen(
            list(map(str, [*command, "--process-id", k, *(own or {}).get(k, [])])),
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(processes)
    ]
    try:
        yield started
    finally:
        for each in started:
            with contextlib.suppress(ProcessLookupError):
                each.send_signal(signal.SIGCONT)
                each.kill()
            each.communicate()


def finish(started, code=0, seconds=240):
    """Waits for the processes; returns their stdout and stderr."""
    said = [each.communicate(timeout=seconds) for each in started]
    assert [each.returncode for each in started] == [code] * len(started), said
    return said


def train(*arguments, **options):
    with training(*arguments, **options) as started:
        for out, _ in finish(started):
            assert ("Streaming" in out) == ("--device-budget" in arguments)


def newest(folder):
    """The step of the newest checkpoint; 0 without one."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return max([0, *(int(name) for name in names if name.isdecimal())])


STREAMED = ["--device-budget", "4.4MB"]
CASES = [("xla", "adam", 2, []), ("matmul", "soap", 3, STREAMED)]
CASES += [
    pytest.param("native", "soap", count, given, marks=needs_native)
    for count, given in ((1, []), (4, []))
]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "optimizer", "processes", "given"), CASES)
def test_any_number_of_processes_ends_with_the_same_bits(
    backend, optimizer, processes, given, data_dir, tmp_path
):
    flags = ["--backend", backend, "--optimizer", optimizer, "--epochs", 2]
    train(tmp_path / "many", data_dir, *flags, *given, processes=processes)
    command = [*TRAIN, "--workdir", tmp_path / "one", "--data-dir", data_dir, *flags]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    assert_same_end(tmp_path / "many", tmp_path / "one")


@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_and_others_go_on(data_dir, tmp_path):
    """Begun by three processes, continued by one, and by two with two devices each."""
    flags = ["--model", "simple", "--epochs", 40]
    for processes in (3, 1):
        before = newest(tmp_path / "run")
        with training(tmp_path / "run", data_dir, *flags, processes=processes) as started:
            until(lambda before=before: newest(tmp_path / "run") > before)
            started[-1].send_signal(signal.SIGTERM)
            finish(started, code=128 + signal.SIGTERM)
    assert newest(tmp_path / "run") < 400
    train(tmp_path / "run", data_dir, *flags, processes=2, devices=2)
    train(tmp_path / "one", data_dir, *flags)
    assert_same_end(tmp_path / "run", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(("who", "number"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_process_that_dies_or_freezes_ends_the_others(who, number, data_dir, tmp_path):
    flags = ["--model", "simple", "--epochs", 100_000, "--patience", 10]
    with training(tmp_path / "run", data_dir, *flags, processes=3) as started:
        until(lambda: newest(tmp_path / "run") > 0)
        started[who].send_signal(number)
        began = time.monotonic()
        errors = finish([each for k, each in enumerate(started) if k != who], code=EXIT)
        assert time.monotonic() - began < 30
    for _, error in errors:
        line = rf"cae-jax: process {who} of 3 \(.*pid {started[who].pid}\) .*; the last checkpoint"
        assert re.search(line, error.splitlines()[-1]), error
        assert "Traceback" not in error
    assert newest(tmp_path / "run") > 0


OTHERS = [
    (["--seed", 1], "seed (0 there, 1 now)"),
    (["--model", "conv", "--backend", "xla"], "backend (matmul there, xla now)"),
]


@pytest.mark.slow
def test_processes_that_differ_are_refused_before_anything_is_written(data_dir, tmp_path):
    flags = ["--model", "simple", "--backend", "matmul"]
    for own, differing in OTHERS:
        with training(tmp_path / "run", data_dir, *flags, processes=2, own={1: own}) as started:
            for _, error in finish(started, code=2):
                assert re.search(
                    f"processes 0 and 1 differ in .*{re.escape(differing)}; start", error
                )
    assert not (tmp_path / "run").exists()
