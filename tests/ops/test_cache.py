"""The cache of compiled programs that the scripts switch on."""

import os
import pwd
import subprocess
import sys

import jax
import pytest

from cae_jax.ops import cache
from tests.conftest import ROOT


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """A process without the cache that the tests share."""
    inherited = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**inherited, **environment},
        timeout=300,
    )


@pytest.mark.slow
def test_training_is_bitwise_the_same_from_the_cache(data_dir, tmp_path):
    histories = []
    for name, enabled in (("without", "0"), ("cold", "1"), ("warm", "1")):
        command = ["--config", ROOT / "configs" / "simple.py", "--data-dir", data_dir]
        command += ["--train-examples", 256, "--test-examples", 100, "--epochs", 2]
        process = run(
            ROOT / "scripts" / "train.py",
            *command,
            *("--workdir", tmp_path / name),
            XDG_CACHE_HOME=str(tmp_path / "cache"),
            JAX_ENABLE_COMPILATION_CACHE=enabled,
            # a fast machine compiles these small programs below the scripts' threshold
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""  # no word of the cache either
        lines = (tmp_path / name / "history.csv").read_text().splitlines()
        histories.append([line.split(",")[:4] for line in lines])  # without the seconds
    assert histories[0][0] == ["epoch", "step", "loss", "val_loss"]
    assert histories[0] == histories[1] == histories[2]
    names = [file.name for file in (tmp_path / "cache" / "cae_jax" / "xla").iterdir()]
    assert any(name.startswith("jit_run_chunk") for name in names)


@pytest.mark.parametrize(
    ("before", "cache_home", "after"), [("own", "home", "own"), (None, "/dev/null", None)]
)
def test_a_folder_of_the_users_own_is_kept_and_none_is_needed(
    monkeypatch, before, cache_home, after
):
    monkeypatch.setenv("XDG_CACHE_HOME", cache_home)
    shared = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", before)
        cache.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == after
    finally:
        jax.config.update("jax_compilation_cache_dir", shared)


def test_without_a_home_directory_there_is_no_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")

    def unknown(_):
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(OSError, match="there is no home directory"):
        cache.cache_folder()


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_damaged_entries_are_replaced_once_and_silently(tmp_path, own):
    code = """
import warnings, jax, jax.numpy as jnp
from cae_jax.ops import cache
cache.use_compilation_cache()
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((9, 9))).block_until_ready()
warnings.warn("another")
"""
    options = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    folder = tmp_path / "cae_jax" / "xla"
    if own:
        folder = tmp_path / "own"
        options["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    run("-c", code, **options)
    entries = {path: path.read_bytes() for path in folder.iterdir()}
    assert entries
    damaged = {
        path: (b"", b"x" * 1000, content[: len(content) // 2])[i % 3]
        for i, (path, content) in enumerate(entries.items())
    }
    for path, content in damaged.items():
        path.write_bytes(content)
    process = run("-c", code, **options)
    assert process.returncode == 0
    assert "another" in process.stderr
    assert "persistent" not in process.stderr
    # Two compilations need not give the same bytes; what has been replaced is read and stays.
    replaced = {path: path.read_bytes() for path in folder.iterdir()}
    assert replaced.keys() == entries.keys()
    assert not any(content == damaged[path] for path, content in replaced.items())
    run("-c", code, **options)
    assert {path: path.read_bytes() for path in folder.iterdir()} == replaced
