"""The process of a command: signals at any moment, and streams that cannot be written."""

import io
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cae_jax import cli
from tests.conftest import ROOT
from tests.helpers import in_process

RUN_ARGUMENTS = {
    "train": ("--workdir", "new", "--train-examples", 1000, "--epochs", 500),
    "evaluate": ("RUN", "--json", "table.json"),
    "export": ("RUN", "--format", "safetensors", "--out", "out.safetensors"),
    "summary": (),
}


@pytest.fixture
def launch(dense_run, data_dir, tmp_path):
    """Starts a command in an empty folder; RUN stands for a finished run."""

    def start(name, *arguments, **options):
        words = [
            dense_run if word == "RUN" else word for word in (*RUN_ARGUMENTS[name], *arguments)
        ]
        # JAX may leave half an entry in its cache, which the tests share.
        environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
        environment |= {"PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(data_dir)}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        return subprocess.Popen(
            [sys.executable, "-m", "cae_jax", name, *map(str, words)],
            cwd=tmp_path,
            env=environment | options.pop("env", {}),
            **options,
        )

    return start


def handles(process, number):
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return int(mask, 16) >> (number - 1) & 1


def assert_ends_with_one_line(launch, tmp_path, name, number, delay, may_be_done=False):
    """Returns whether the signal came before the command had ended, as it must by default."""
    process = launch(name)
    while not handles(process, signal.SIGTERM):
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if may_be_done and (process.returncode, err) == (0, ""):
        return False
    assert (process.returncode, err) == (128 + number, "")
    lines = [line for line in out.splitlines() if "to continue" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{number.name}: to continue, run cae-jax {name}")
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]
    return True


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")


@needs_proc
@pytest.mark.parametrize(
    ("name", "number", "delay"),
    [
        ("summary", signal.SIGINT, 0),
        ("summary", signal.SIGTERM, 0.02),
        ("evaluate", signal.SIGINT, 0.4),
        ("export", signal.SIGTERM, 0.8),
        ("train", signal.SIGINT, 0.2),
    ],
)
def test_a_signal_ends_a_command_with_one_line(launch, tmp_path, name, number, delay):
    assert_ends_with_one_line(launch, tmp_path, name, number, delay)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "evaluate"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_at_any_moment(launch, tmp_path, name, number):
    outcomes = [
        assert_ends_with_one_line(launch, tmp_path, name, number, delay / 1000, may_be_done=True)
        for delay in range(0, 1500, 150)
    ]
    assert sum(outcomes) > 3  # a fast machine is done with the others


def test_a_signal_removes_temporary_files_and_keeps_what_was_printed(tmp_path):
    code = f"""
import signal
from cae_jax import atomic
from cae_jax.cli import process
process.start(["cae-jax", "report", "--out", "page 1"])
print("a table")
with atomic.output_file({str(tmp_path / "page 1")!r}) as file:
    file.write_text("half of")
    signal.raise_signal(signal.SIGTERM)
"""
    process = in_process(code, returncode=128 + 15)
    assert process.stdout == "a table\nSIGTERM: to continue, run cae-jax report --out 'page 1'\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "expected"), [("Interrupted(2)", ""), ("ValueError(2)", "ValueError: 2")]
)
def test_an_interruption_in_a_destructor_prints_nothing(error, expected):
    code = f"""
from cae_jax.cli import process
from cae_jax.runs.interruption import Interrupted
process.start([])
class Array:
    def __del__(self):
        raise {error}
Array()
"""
    stderr = in_process(code).stderr
    assert stderr.endswith(f"{expected}\n") if expected else stderr == ""


def test_signals_are_handled_before_anything_is_imported_and_only_by_the_command(capsys):
    code = """
import signal, sys
import cae_jax.cli, cae_jax.cli.process, cae_jax.__main__
assert not {"tyro", "numpy", "jax", "dataclasses"} & set(sys.modules)
assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
    in_process(code)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    cli.main(["summary"])
    assert "4,385" in capsys.readouterr().out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def ended(process):
    """The exit code, and what a process wrote to stdout and stderr."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


@needs_full
@pytest.mark.parametrize(
    ("arguments", "buffering"),
    [
        ((), ""),
        (("--help",), "1"),
        pytest.param((), "1", marks=pytest.mark.slow),
        pytest.param(("--help",), "", marks=pytest.mark.slow),
    ],
)
def test_a_stdout_that_cannot_be_written_is_told_in_one_line(launch, arguments, buffering):
    with FULL.open("w") as full:
        environment = {"PYTHONUNBUFFERED": buffering}
        code, _, err = ended(launch("summary", *arguments, stdout=full, env=environment))
    assert code == 2
    assert re.fullmatch("cae-jax: error: stdout cannot be written .*No space left.*\n", err)


@pytest.mark.parametrize("buffering", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_a_pipe_that_nobody_reads_ends_a_command_like_sigpipe(launch, buffering):
    reader, writer = os.pipe()
    os.close(reader)
    process = launch("summary", stdout=writer, env={"PYTHONUNBUFFERED": buffering})
    os.close(writer)
    assert ended(process) == (128 + 13, None, "")


@needs_full
def test_an_error_that_cannot_be_printed_keeps_its_code(launch):
    with FULL.open("w") as full:
        assert ended(launch("summary", "--epochs", "many", stderr=full)) == (2, "", None)


def test_closed_streams_are_not_taken_for_files(tmp_path):
    code = f"""
from pathlib import Path
from cae_jax import atomic, cli
from cae_jax.cli import process
process.start([])
with process.checked_output(), Path({str(tmp_path / "a")!r}).open("w") as file:
    assert file.fileno() > 2
    cli.main(["summary"])
"""
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == 0
    assert (tmp_path / "a").read_bytes() == b""


def test_any_name_is_shown_in_any_encoding(launch):
    arguments = ("--config", "schön.py")
    code, _, err = ended(launch("summary", *arguments, env={"PYTHONIOENCODING": "ascii"}))
    assert code == 2
    assert err.startswith("cae-jax summary: error: config sch\\xf6n.py is not a file; give one of ")


def test_a_message_that_cannot_be_shown_raises_nothing(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    closed = io.StringIO()
    closed.close()
    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    for stream in (Full(), closed, None, ascii_only):
        monkeypatch.setattr(sys, "stdout", stream)
        logging.getLogger("cae_jax.runs").info("Training in schön")
    assert ascii_only.buffer.getvalue() == b"Training in sch\\xf6n\n"


@pytest.mark.slow
def test_a_device_that_is_not_there_is_told_in_one_line(launch):
    code, out, err = ended(launch("evaluate", env={"JAX_PLATFORMS": "quantum"}))
    assert (code, out) == (2, "")
    assert err.startswith("cae-jax evaluate: error: JAX_PLATFORMS is quantum, and JAX has no such ")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_without_the_modules_of_unix_runs_can_be_read_and_training_says_what_it_needs(
    dense_run, tmp_path
):
    code = """
import os, sys
sys.modules.update(dict.fromkeys(("fcntl", "resource", "termios")))
del os.getuid
import cae_jax
from cae_jax import cli
from cae_jax.ops import cache
assert cache.cache_folder().is_dir()
run, workdir = sys.argv[1:]
assert cae_jax.load(run).encode([[[0.5] * 28] * 28]).shape == (1, 32)
cli.main(["curves", run])
cli.main(["train", "--workdir", workdir])
"""
    process = in_process(code, dense_run, tmp_path / "new", returncode=2)
    assert process.stdout.startswith("| epoch | dense |")
    assert "Traceback" not in process.stderr
    line = process.stderr.splitlines()[-1]
    assert re.search("^cae-jax train: error: training needs Linux or macOS.* only be read", line)
    assert not (tmp_path / "new").exists()
