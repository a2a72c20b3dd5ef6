"""Fixtures: the real data set, prepared once, and one small trained run."""

import atexit
import dataclasses
import fcntl
import gzip
import itertools
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

# One cache of compiled programs for all tests, in both of pytest-xdist's workers, and the processes
# they start; JAX reads the variables when it is imported.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    os.environ["XDG_CACHE_HOME"] = _CACHE  # the native step
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import numpy as np
import pytest

import cae_jax
import cae_jax.data
from cae_jax import cli
from cae_jax.models.topology import from_config
from cae_jax.ops.backend import choose

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent
ARCHIVES = Path(str(resources.files("cae_jax.data"))) / "archives" / "fashion_mnist"
# Adam compiles in a third of the time of SOAP, which tests/test_soap.py tries.
SMALL = cae_jax.TrainConfig(
    train_examples=1000,
    test_examples=300,
    epochs=3,
    optimizer="adam",
    learning_rate=2e-2,
    warmup_steps=4,
    b2=0.99,
)
# Trained in two epochs of eight steps without compiling a kernel.
DENSE = dataclasses.replace(SMALL, model="simple", epochs=2)

# Compiles the native step, unless the cache already has it.
CHOICE = choose(from_config(SMALL))
needs_native = pytest.mark.skipif(CHOICE.name != "native", reason=CHOICE.reason)
BACKENDS = ("xla", "matmul", pytest.param("native", marks=needs_native))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A folder with Fashion-MNIST, prepared from the shipped archives by the first worker here."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "tfds"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cae_jax.data.load_split(cae_jax.TrainConfig(), "train", data_dir=folder)
    return folder


@pytest.fixture(scope="session")
def test_images() -> np.ndarray:
    """The 10,000 test images uint8 [N, 28, 28, 1], read without the code under test."""
    raw = gzip.decompress((ARCHIVES / "t10k-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(raw[16:], np.uint8).reshape(10000, 28, 28, 1)


@pytest.fixture(scope="session")
def run(tmp_path_factory, data_dir) -> Path:
    """The folder of a finished run of the config SMALL."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    cae_jax.fit(SMALL, folder, data_dir=data_dir)
    return folder


@pytest.fixture(scope="session")
def dense_run(tmp_path_factory, data_dir) -> Path:
    """The folder of a finished run of the config DENSE."""
    folder = tmp_path_factory.mktemp("dense") / "run"
    cae_jax.fit(DENSE, folder, data_dir=data_dir)
    return folder


@pytest.fixture
def copied(dense_run, tmp_path) -> Path:
    """A copy of `dense_run`, which a test may change."""
    return Path(shutil.copytree(dense_run, tmp_path / "run"))


def program(name: str) -> list[str]:
    """How Python runs a command of cae-jax, a script, or a module such as benchmarks.study."""
    if name.endswith(".py"):
        return [str(ROOT / "scripts" / name)]
    return ["-m", name] if "." in name else ["-m", "cae_jax", name]


@pytest.fixture
def script(data_dir, tmp_path):
    """Runs a `program` in a new process, in an empty folder."""

    def call(name: str, *arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *program(name), *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "TFDS_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)},
            timeout=900,  # the slow ones take minutes on a busy machine
        )

    return call


@pytest.fixture
def command(script):
    """Runs a command of cae-jax: ``command("train", "--epochs", 1)``."""
    return script


@pytest.fixture
def refuse(data_dir, tmp_path, monkeypatch, capsys):
    """Like `script` for a program that ends early: in this process, which has imported JAX."""

    def call(name: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [program(name)[-1], *map(str, arguments)]
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setenv("TFDS_DATA_DIR", str(data_dir))
            patch.syspath_prepend(ROOT / "scripts")
            patch.setattr(sys, "argv", command)
            run = runpy.run_path if name.endswith(".py") else runpy.run_module
            with pytest.raises(SystemExit) as stop:
                cli.main(command) if name in cli.COMMANDS else run(command[0], run_name="__main__")
        return subprocess.CompletedProcess(command, stop.value.code or 0, *capsys.readouterr())

    return call


def signal_in_chunk(chunk: int):
    """An `on_chunk` that sends SIGINT after a chunk of steps, counted from 1."""
    chunks = itertools.count(1)

    def on_chunk(step):
        if next(chunks) == chunk:
            signal.raise_signal(signal.SIGINT)

    return on_chunk
