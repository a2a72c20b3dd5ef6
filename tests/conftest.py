"""Fixtures: the real data set and small trained runs, made once, and commands in this process."""

import atexit
import dataclasses
import fcntl
import functools
import gc
import gzip
import hashlib
import itertools
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path

# One cache of compiled programs for all tests, in both of pytest-xdist's workers, and the processes
# they start; JAX reads the variables when it is imported. The folder CAE_JAX_TEST_CACHE is kept.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = os.environ.get("CAE_JAX_TEST_CACHE")
    if not _CACHE:
        _CACHE = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    os.environ["XDG_CACHE_HOME"] = _CACHE  # the native step
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

gc.disable()  # until all is imported, see pytest_collection_finish

import jax
import numpy as np
import pytest

import cae_jax
import cae_jax.data
from cae_jax import cli
from cae_jax.cli import process
from cae_jax.models.topology import from_config
from cae_jax.ops.backend import Backend, choose
from cae_jax.runs import journal

jax.config.update("jax_numpy_rank_promotion", "raise")
journal._PICTURES = 1  # to draw ten images takes longer than to train DENSE

ROOT = Path(__file__).parent.parent
ARCHIVES = Path(str(resources.files("cae_jax.data"))) / "archives" / "fashion_mnist"
# Adam compiles in a third of the time of SOAP, which tests/training/test_soap.py tries.
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


@functools.cache
def choice() -> Backend:
    """The backend of SMALL; compiles the native kernel unless the cache already has it."""
    return choose(from_config(SMALL))


needs_native = pytest.mark.native
BACKENDS = ("xla", "matmul", pytest.param("native", marks=needs_native))


def pytest_configure(config):
    # Without LLVM's optimisations XLA compiles in 0.6 of the time. The slow tests, and CI's run of
    # the quick ones with the oldest versions, have them. XLA reads the variable at its first use.
    if config.option.markexpr == "not slow":
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def pytest_sessionstart(session):
    # The kernel is compiled while the workers import the tests.
    if session.config.getoption("numprocesses", None) and not session.config.option.collectonly:
        threading.Thread(target=choice, daemon=True).start()


def pytest_collection_finish():
    gc.freeze()  # modules and tests stay: looking for garbage among them takes a tenth of the time
    gc.enable()


def pytest_runtest_setup(item):
    if item.get_closest_marker("native") and choice().name != "native":
        pytest.skip(choice().reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    yield
    for folder, before in _SHARED.items() if "shared_run" in item.fixturenames else ():
        now = _digests(folder)
        changed = sorted({name for name, _ in before.items() ^ now.items()})
        _SHARED[folder] = now
        if changed:
            pytest.fail(f"{item.nodeid} changes {changed} in a run that all tests share; copy it")


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Fills a folder in the first of pytest-xdist's workers that asks for it; the others wait."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def make(name, fill):
        folder, done = root / name, root / f"{name}.made"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def data_dir(make_once) -> Path:
    """A folder with Fashion-MNIST, prepared from the shipped archives.

    Without its 70,000 records, which nothing reads afterwards and TFDS takes as long to write as
    the rest; tests/data/test_data.py has fewer, and its slow tests all.
    """

    def prepare(folder):
        from cae_jax.data.sources.named import CaeImages

        def read(builder, **_):
            builder._split_generators(None)

        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CaeImages, "download_and_prepare", read)
            cae_jax.data.load_split(cae_jax.TrainConfig(), "train", data_dir=folder)

    choice()  # so that no test sees the message of its compilation
    return make_once("tfds", prepare)


# The shared runs of this worker, and the SHA-256 of their files.
_SHARED: dict[Path, dict[str, str]] = {}


def _digests(folder: Path) -> dict[str, str]:
    # Whoever opens a run leaves its name in .cae-jax.
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".cae-jax"
    }


@pytest.fixture(scope="session")
def shared_run(make_once, tmp_path_factory, data_dir) -> Callable[..., Path]:
    """Finished runs, trained once; each worker has a copy, because a run in use is locked."""

    def get(name, config, **options):
        def train(folder):
            cae_jax.fit(config, folder, data_dir=data_dir, **options)

        folder = tmp_path_factory.mktemp("runs") / name
        shutil.copytree(make_once(f"run-{name}", train), folder)
        _SHARED[folder] = _digests(folder)
        return folder

    return get


@pytest.fixture(scope="session")
def test_images() -> np.ndarray:
    """The 10,000 test images uint8 [N, 28, 28, 1], read without the code under test."""
    raw = gzip.decompress((ARCHIVES / "t10k-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(raw[16:], np.uint8).reshape(10000, 28, 28, 1)


@pytest.fixture(scope="session")
def run(shared_run) -> Path:
    """The folder of a finished run of the config SMALL."""
    return shared_run("small", SMALL)


@pytest.fixture(scope="session")
def dense_run(shared_run) -> Path:
    """The folder of a finished run of the config DENSE."""
    return shared_run("dense", DENSE)


@pytest.fixture(scope="session")
def color_run(shared_run) -> tuple[Path, np.ndarray]:
    """A run on 20 colored images of 13 x 10 pixels, with salt and pepper, and 10 to test it."""
    images = np.random.default_rng(0).integers(0, 256, (30, 13, 10, 3), np.uint8)
    whole = {"train_examples": None, "test_examples": None, "batch_size": 8}
    config = dataclasses.replace(DENSE, noise="salt_and_pepper", noise_level=0.3, **whole)
    return shared_run("photos", config, images=(images[:20], images[20:])), images


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
def command(data_dir, tmp_path, monkeypatch, capsys):
    """Like `script`, in this process, which has imported JAX: ``command("train", "--help")``."""

    def call(name: str, *arguments: object) -> subprocess.CompletedProcess:
        words = [program(name)[-1], *map(str, arguments)]
        code = 0
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setenv("TFDS_DATA_DIR", str(data_dir))
            patch.setenv("COLUMNS", "80")
            patch.syspath_prepend(ROOT / "scripts")
            patch.setattr(sys, "argv", words)
            patch.setattr(process, "start", lambda _: None)  # this process is not the command's
            try:
                if name.endswith(".py"):
                    runpy.run_path(words[0], run_name="__main__")
                elif "." in name:
                    patch.delitem(sys.modules, name, raising=False)  # where a test imported it
                    runpy.run_module(name, run_name="__main__")
                else:
                    cli.main(words)
            except SystemExit as stop:
                code = stop.code or 0
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return call


@pytest.fixture
def refuse(command):
    """Runs a `command` or a program that has to fail."""

    def call(name: str, *arguments: object) -> subprocess.CompletedProcess:
        process = command(name, *arguments)
        assert process.returncode != 0
        return process

    return call


def signal_in_chunk(chunk: int):
    """An `on_chunk` that sends SIGINT after a chunk of steps, counted from 1."""
    chunks = itertools.count(1)

    def on_chunk(step):
        if next(chunks) == chunk:
            signal.raise_signal(signal.SIGINT)

    return on_chunk
