"""Tries trainings of several processes: how they begin, agree and end, and what kills them.

A toy takes the place of the training: steps with a collective and an exchange.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cae_jax.errors import UserError
from cae_jax.runs import peers

PATIENCE = 5
# Runs code of the test: before its steps, around the collective of the fourth, and after all.
TOY = """
import signal, sys, time
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from cae_jax.cli import common
from cae_jax.errors import UserError
from cae_jax.runs import peers
from cae_jax.runs.interruption import Interrupted

count, index, address, steps = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
first, early, late, after = sys.argv[5:]
received = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: received.append(number))
with common.user_errors("toy"), common.interruptible(["toy"]):
    where = (False, address, count, index) if ":" in address else (True,)
    group = peers.join(*where, patience=5, seconds=60)
    assert (group.index, group.count) == (index, count)
    with group.guard():
        mesh = Mesh(np.array(jax.devices()), ("data",))
        split, whole = PartitionSpec("data"), PartitionSpec()
        total = jax.jit(
            jax.shard_map(
                lambda x: jax.lax.all_gather(x, "data", tiled=True).sum(keepdims=True),
                mesh=mesh, in_specs=split, out_specs=whole, check_vma=False,
            )
        )
        mine = np.full(1, index + 1.0, np.float32)
        mine = jax.make_array_from_process_local_data(NamedSharding(mesh, split), mine, (count,))
        exec(first)
        for step in range(steps):
            if step == 3:
                exec(early)
            assert float(total(mine).addressable_data(0)[0]) == count * (count + 1) / 2
            if step == 3:
                exec(late)
            values = group.exchange(f"chunk {step}", [index, received[:1]])
            assert [other for other, _ in values] == [*range(count)]
            if signals := [number for _, numbers in values for number in numbers]:
                print("stopped at", step, flush=True)
                group.exchange("saved", None)
                raise Interrupted(signals[0])
            if step == 3:
                print("running", flush=True)
            time.sleep(0.01)
    exec(after)
print("done")
"""
IDLE = "print('running', flush=True); time.sleep(1000)"


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


@pytest.fixture
def start():
    """Starts the toy in several processes, and leaves none behind."""
    processes = []

    def begin(count, steps=10**9, address=None, environment=None, **code):
        """`code` has what process i runs, as `first_i`, `early_i`, `late_i` and `after_i`."""
        address = address or free_address()
        for index in range(count):
            moments = ("first", "early", "late", "after")
            snippets = [code.get(f"{when}_{index}", "") for when in moments]
            words = [count, index, address, steps, *snippets]
            variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", TOY, *map(str, words)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=os.environ | variables | (environment(index) if environment else {}),
                )
            )
        return processes

    yield begin
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()


def running(processes):
    """Waits until all processes are in the middle of their steps, or wait for an idle one."""
    for process in processes:
        assert any(line == "running\n" for line in process.stdout), process.stderr.read()
    time.sleep(0.5)


def ended(process) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=200)
    return process.returncode, stdout, stderr


def one_line(process, dead, reason: str, code: int = peers.EXIT, index: int = 1) -> None:
    returned, _, stderr = ended(process)
    host = re.escape(socket.gethostname())
    assert re.fullmatch(
        rf"cae-jax: process {index} of \d \(host {host}, pid {dead.pid}\) {reason}; the last "
        "checkpoint is kept: start all processes again with the same commands to go on\n",
        stderr,
    ), stderr
    assert returned == code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "number", "where"),
    [
        (0, signal.SIGKILL, "early"),
        (0, signal.SIGSTOP, "late"),
        (1, signal.SIGKILL, "late"),
    ],
)
def test_a_dead_or_frozen_process_ends_the_others(start, who, number, where):
    # Those wait in the collective for one that is idle before it, and else in the exchange.
    processes = start(3, **{f"{where}_{who}": IDLE})
    running([processes[who]])
    begun = time.monotonic()
    processes[who].send_signal(number)
    reason = "was killed or has crashed"
    if number == signal.SIGSTOP:
        reason = f"gave no sign of life for {PATIENCE} s: it is frozen or cannot be reached"
    for other in [each for each in processes if each is not processes[who]]:
        one_line(other, processes[who], reason, index=who)
    assert time.monotonic() - begun < PATIENCE + 5  # the machine may be busy
    if number == signal.SIGSTOP:  # it says the same of itself when it wakes up
        processes[who].send_signal(signal.SIGCONT)
        one_line(processes[who], processes[who], reason, index=who)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_an_error_in_one_process_ends_the_others(start, who):
    processes = start(2, **{f"early_{who}": "raise UserError('the disk is full')"})
    one_line(
        processes[1 - who],
        processes[who],
        r"ended with an error \(the disk is full\)",
        index=who,
    )
    assert ended(processes[who])[::2] == (2, "toy: error: the disk is full\n")


@pytest.mark.slow
def test_an_error_that_all_have_is_reported_by_each(start):
    code = "raise UserError('the images differ')"
    processes = start(2, early_0=code, early_1=f"time.sleep(0.5); {code}")
    for process in processes:
        assert ended(process)[::2] == (2, "toy: error: the images differ\n")


@pytest.mark.slow
def test_a_bug_in_one_process_keeps_its_traceback(start):
    processes = start(2, late_1="1 / 0")
    one_line(processes[0], processes[1], r"ended with an error \(division by zero\)")
    code, _, stderr = ended(processes[1])
    assert code == 1
    assert stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.slow
def test_a_process_that_lives_but_does_not_come_is_named(start):
    processes = start(
        2, late_0="group.exchange('chunk 3', [0, []], within=1)", late_1="time.sleep(1000)"
    )
    one_line(processes[0], processes[1], "did not come to chunk 3 within 1 s")


@pytest.mark.slow
def test_processes_at_different_places_end(start):
    processes = start(2, late_1="group.exchange('elsewhere', 0)")
    for each in processes:
        code, _, stderr = ended(each)
        assert code == peers.EXIT
        assert re.search(
            "is at (chunk 3|elsewhere) and process [01] at (chunk 3|elsewhere)", stderr
        )


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_all_end_in_order_and_wait_for_slow_ones(start, count):
    slow, last = f"time.sleep({PATIENCE + 1})", count - 1
    processes = start(count, 5, **{f"late_{last}": slow, f"after_{0 if count > 2 else last}": slow})
    for process in processes:
        code, stdout, stderr = ended(process)
        assert (code, stderr) == (0, "")
        assert stdout.endswith("done\n")


@pytest.mark.slow
@pytest.mark.parametrize(("who", "number"), [(0, signal.SIGINT), (1, signal.SIGTERM)])
def test_a_signal_stops_all_at_the_same_step(start, who, number):
    processes = start(3)
    running(processes)
    processes[who].send_signal(number)
    results = [ended(each) for each in processes]
    assert {(code, stderr) for code, _, stderr in results} == {(128 + number, "")}
    stops = {re.search("stopped at .*", stdout)[0] for _, stdout, _ in results}
    assert len(stops) == 1


@pytest.mark.slow
def test_a_signal_that_only_one_process_acts_on_stops_the_others_too(start):
    processes = start(2, early_1="raise Interrupted(signal.SIGTERM)")
    one_line(processes[0], processes[1], "was stopped by SIGTERM", code=128 + signal.SIGTERM)
    assert ended(processes[1])[0] == 128 + signal.SIGTERM


@pytest.mark.slow
def test_proxies_and_stray_variables_of_clusters_do_not_matter(start, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "elsewhere:1")
    for name in ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID"):
        monkeypatch.setenv(f"SLURM_{name}", "7")
    assert [ended(each)[::2] for each in start(2, 3)] == [(0, ""), (0, "")]


@pytest.mark.slow
def test_collectives_wait_for_a_process_that_compiles_for_long(start):
    processes = start(2, 4, first_1="time.sleep(35)")
    assert [ended(each)[::2] for each in processes] == [(0, ""), (0, "")]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["Slurm", "Open MPI"])
def test_a_cluster_says_which_processes_there_are(start, launcher):
    host, port = free_address().split(":")

    def environment(index):
        if launcher == "Slurm":
            job = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": host, "SLURM_NTASKS": "2"}
            own = {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
        else:
            job = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}
            rank = str(index)
            own = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        return {"JAX_COORDINATOR_PORT": port, **job, **own}

    processes = start(2, 3, address="cluster", environment=environment)
    assert [ended(each)[::2] for each in processes] == [(0, ""), (0, "")]


def test_a_single_process_needs_no_others():
    alone = peers.join()
    assert (alone.index, alone.count) == (0, 1)
    with alone.guard():
        assert alone.exchange("chunk 1", {"stop": None}) == [{"stop": None}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "host:1"}, "`coordinator` came without `num_processes` and `process_id`"),
        (
            {"process_id": 0, "num_processes": 2},
            "`num_processes` and `process_id` came without `coord",
        ),
        ({"distributed": True, "process_id": 0}, "`distributed` and `process_id` exclude"),
        ({"coordinator": "host"}, "`coordinator` is host; it takes HOST:PORT"),
        ({"coordinator": ":80"}, "`coordinator` is :80; it takes HOST:PORT"),
        ({"coordinator": "host:http"}, "`coordinator` is host:http; it takes HOST:PORT"),
        ({"coordinator": "host:65536"}, "`coordinator` is host:65536; it takes HOST:PORT"),
        ({"num_processes": 0}, "`num_processes` is 0; it takes a number of at least 1"),
        ({"process_id": 2}, "`process_id` is 2; it takes 0 to 1"),
        ({"process_id": -1}, "`process_id` is -1; it takes 0 to 1"),
        ({"patience": 0.5}, "`patience` is 0.5 s; it takes at least 1 s"),
        ({"distributed": True}, "neither Slurm, Open MPI, Kubernetes nor a TPU pod was found"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(arguments, message):
    complete = {"coordinator": "localhost:1", "num_processes": 2, "process_id": 1}
    if "came without" not in message and "distributed" not in arguments:
        arguments = complete | arguments
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        peers.join(**arguments)


def test_a_cluster_whose_variables_are_wrong_is_one_line(monkeypatch):
    for name in ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID"):
        monkeypatch.setenv(f"SLURM_{name}", "seven")
    with pytest.raises(UserError, match=r"^the cluster cannot be used \(invalid literal"):
        peers.join(distributed=True)


def test_a_coordinator_that_is_not_there_is_one_line():
    address = free_address()
    with pytest.raises(UserError, match=f"^process 0 was not found at {address} within 0 s"):
        peers.join(False, address, 2, 1, seconds=0)


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"^process 0 cannot listen on port {port} "):
            peers.join(False, f"localhost:{port}", 2, 0)


def test_a_process_that_does_not_come_is_named():
    with pytest.raises(UserError, match=r"^process 1 of 2 did not come to the start within 0\.1 s"):
        peers.join(False, free_address(), 2, 0, patience=1, seconds=0.1)


def test_strangers_are_ignored_and_a_process_that_dies_before_the_start_is_named():
    host, port = free_address().split(":")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(peers.join, False, f"{host}:{port}", 2, 0, patience=1)
        time.sleep(0.2)
        for words in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"5\n",
            b'["end", 0, "x"]\n',
            b'["at", "x"]\n',
            b"",
        ):
            with socket.create_connection((host, port)) as connection:
                connection.sendall(words)
        assert not first.done()
        with socket.create_connection((host, port)) as connection:
            connection.sendall(b'["hello", 1, 2, 1]\n')
            time.sleep(0.1)
    assert str(first.exception()).startswith("process 1 of 2 was killed or has crashed; ")


def test_processes_that_do_not_match_are_refused():
    address = free_address()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(peers.join, False, address, 3, 0, patience=1, seconds=0.5)
        second = pool.submit(peers.join, False, address, 3, 1, patience=1, seconds=0.5)
        time.sleep(0.3)
        for count, patience, message in (
            (3, 1, "`process_id` 1 is in use by another process"),
            (2, 1, "`num_processes` is 2, and 3 in process 0"),
            (3, 2, "`patience` is 2, and 1 in process 0"),
        ):
            with pytest.raises(UserError, match=message):
                peers.join(False, address, count, 1, patience)
    for each in (first, second):
        assert str(each.exception()).startswith("process 2 of 3 did not come to the start")
