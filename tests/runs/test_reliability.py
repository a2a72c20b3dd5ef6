"""Kills and signals: what the same command makes of a training that was broken off."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from flax import nnx

import cae_jax
from benchmarks.kill_and_resume import final, stress
from cae_jax.runs import history
from cae_jax.runs.interruption import Interrupted, Interruption
from tests.conftest import DENSE, ROOT, SMALL, signal_in_chunk

TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]
# The config SMALL but for its epochs.
TRAIN_SMALL = [*TRAIN, "--train-examples", "1000", "--test-examples", "300", "--warmup-steps", "4"]
TRAIN_SMALL += ["--optimizer", "adam", "--learning-rate", "2e-2", "--b2", "0.99"]


def start(workdir, data_dir, *command, **options):
    arguments = [*command, "--workdir", workdir, "--data-dir", data_dir]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(list(map(str, arguments)), text=True, **pipes, **options)


def finish(process):
    """Exit code, output, error output."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def until(condition, seconds=120):
    """Waits for a condition, looking at it as often as can be."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def assert_same_end(folder, expected):
    ours, wanted = final(folder), final(expected)
    assert [name for name in wanted if ours[name] != wanted[name]] == []


@pytest.mark.slow
def test_the_end_that_is_compared_tells_runs_apart(run, data_dir, tmp_path):
    cae_jax.fit(SMALL, tmp_path / "same", data_dir=data_dir)
    assert_same_end(tmp_path / "same", run)
    wanted = final(run)
    assert {"history", ".step", ".losses_S"} <= set(wanted)
    # 14 arrays of parameters; one each of Adam's count, means, and of the schedule's count
    assert len(wanted) == 14 + 4 + 3
    rows = (run / "history.csv").read_text().splitlines()
    (tmp_path / "same" / "history.csv").write_text("\n".join([*rows[:-1], rows[-1][:-9]]) + "\n")
    assert_same_end(tmp_path / "same", run)  # the seconds do not count
    (tmp_path / "same" / "history.csv").write_text("\n".join(rows).replace("24,0", "24,1") + "\n")
    assert final(tmp_path / "same")["history"] != wanted["history"]


@pytest.mark.slow
def test_ten_kills_at_random_moments_do_not_change_a_bit(data_dir, tmp_path, capsys):
    small = ["--train-examples", "1000", "--test-examples", "300", "--epochs", "20"]
    command = [*TRAIN, *small, "--data-dir", str(data_dir)]  # the optimizer of the default recipe
    stress(command, tmp_path / "stress", kills=10, fresh=False, damage=True)
    assert re.search(
        r"1\d kills .* and \d+ damaged files .* all ended with the same bits",
        capsys.readouterr().out,
    )


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["save", "data preparation", "first compilation"])
def test_killed_in_the_middle_of(moment, run, data_dir, tmp_path):
    folder, environment = tmp_path / "run", dict(os.environ)
    data = tmp_path / "data" if moment == "data preparation" else data_dir
    if moment == "first compilation":
        environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")  # of the native step
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "xla")
    command = (folder, data, *TRAIN_SMALL, "--epochs", 3)
    process = start(*command, env=environment)
    if moment == "save":
        until(lambda: any(folder.glob("checkpoints/*.tmp*")))
    elif moment == "data preparation":
        until(lambda: any(data.rglob("incomplete*/*record*")))
    else:
        assert process.stdout is not None
        process.stdout.readline()  # "Method ...", after which it compiles
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    code, _, err = finish(start(*command, env=environment))
    assert code == 0, err
    assert_same_end(folder, run)
    leftovers = [path for path in tmp_path.rglob("*") if re.search(r"tmp|incomplete", path.name)]
    assert leftovers == []


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "start"),
        pytest.param(signal.SIGINT, "data", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "compilation", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "first epoch", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "later", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_script_soon_with_the_command_that_goes_on(
    number, moment, data_dir, tmp_path
):
    # JAX may leave half an entry in its cache, which the tests share.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    flags = ("--config", "simple", "--overwrite")
    process = start(tmp_path / "run", data_dir, *TRAIN, *flags, env=environment)
    assert process.stdout is not None
    if moment == "start":
        time.sleep(1)
    elif moment == "data":
        until((tmp_path / "run" / ".cae-jax").exists)
    else:
        for _ in range({"compilation": 1, "first epoch": 2, "later": 3}[moment]):
            process.stdout.readline()
        time.sleep(0.1)
    process.send_signal(number)
    began = time.monotonic()
    code, out, _ = finish(process)
    assert time.monotonic() - began < 5
    assert code == 128 + number
    *_, command = out.splitlines()
    overwrite = moment in ("start", "data", "compilation")  # no step has been taken
    assert command == (
        f"{number.name}: to continue, run cae-jax train --config simple "
        f"{'--overwrite ' * overwrite}--workdir {tmp_path / 'run'} --data-dir {data_dir}"
    )
    if moment in ("first epoch", "later"):
        step = int(re.search(r"after step (\d+) of 9380, which .*/run keeps", out)[1])
        assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == sorted(
            {str(step), *(str(469 * epoch) for epoch in range(1, step // 469 + 1))}
        )


@pytest.mark.parametrize(
    ("chunk", "step", "rows"),
    [
        (1, 3, 0),
        pytest.param(3, 8, 1, marks=pytest.mark.slow),
        pytest.param(5, 14, 1, marks=pytest.mark.slow),
        pytest.param(6, 16, 2, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_leaves_a_usable_result_and_resumes_exactly(
    chunk, step, rows, dense_run, data_dir, tmp_path, test_images, capsys
):
    """Three chunks of 3, 3 and 2 steps are an epoch: the step is the position."""
    folder = tmp_path / "run"
    options = {"data_dir": data_dir, "chunk_steps": 3}
    result = cae_jax.fit(DENSE, folder, on_chunk=signal_in_chunk(chunk), **options)
    assert result.interrupted == signal.SIGINT
    assert f"SIGINT after step {step} of 16, which {folder} keeps" in capsys.readouterr().out
    assert [row.epoch for row in result.history] == list(range(1, rows + 1))
    pictures = result.autoencoder.reconstruct(test_images[:2])
    np.testing.assert_array_equal(pictures, cae_jax.load(folder).reconstruct(test_images[:2]))
    assert not (folder / "result.json").exists()
    resumed = cae_jax.fit(DENSE, folder, data_dir=data_dir)
    assert resumed.interrupted is None
    assert_same_end(folder, dense_run)


def test_a_second_signal_does_not_wait_for_the_chunk(dense_run, data_dir, tmp_path, monkeypatch):
    """And what was done before that chunk is kept."""
    folder, calls = tmp_path / "run", []
    call = Interruption.call

    def two_signals(self, function, *arguments):
        calls.append(function.__name__)
        if calls.count("run") == 2:  # the second chunk
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it goes on")
        return call(self, function, *arguments)

    monkeypatch.setattr(Interruption, "call", two_signals)
    result = cae_jax.fit(DENSE, folder, data_dir=data_dir, chunk_steps=3)
    assert result.interrupted == signal.SIGTERM  # the first
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["3"]
    monkeypatch.undo()
    cae_jax.fit(DENSE, folder, data_dir=data_dir)
    assert_same_end(folder, dense_run)


def test_an_interrupt_in_the_last_evaluation_loses_no_epoch(
    dense_run, data_dir, tmp_path, monkeypatch
):
    """Its checkpoint is saved before the loss is known, and again with the loss."""
    folder, evaluations = tmp_path / "run", []
    call = Interruption.call

    def two_signals(self, function, *arguments):
        if function.__name__ == "evaluate":
            evaluations.append(1)
            if len(evaluations) == DENSE.epochs:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)
        return call(self, function, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "call", two_signals)
        result = cae_jax.fit(DENSE, folder, data_dir=data_dir)
    assert (result.interrupted, result.steps, len(result.history)) == (signal.SIGTERM, 16, 1)
    cae_jax.fit(DENSE, folder, data_dir=data_dir)
    assert_same_end(folder, dense_run)
    assert [row.epoch for row in history.of_run(folder)] == [1, 2]
    manifest = json.loads((folder / "checkpoints" / "16" / "manifest.json").read_text())
    assert manifest["val_loss"] is not None


def test_an_interrupt_during_compilation_does_not_wait(data_dir, tmp_path, monkeypatch):
    def compile_for_long(*_):
        # as the system does: raise_signal would interrupt this thread, and not the waiting one
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr("cae_jax.training.trainer.Trainer._compile", compile_for_long)
    began = time.monotonic()
    result = cae_jax.fit(SMALL, tmp_path / "run", data_dir=data_dir)
    assert time.monotonic() - began < 4
    assert (result.interrupted, result.history) == (signal.SIGINT, [])
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(result.autoencoder.model))) == 4385
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_signals_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as outer:
        with Interruption() as inner:
            with pytest.raises(Interrupted), inner.defer(1):  # noqa: PT012
                signal.raise_signal(signal.SIGINT)
                with pytest.raises(Interrupted):
                    inner.check()
                with inner.defer():
                    signal.raise_signal(signal.SIGINT)
                raise AssertionError("the end of the innermost statement acts")
            inner.ignore()
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGINT"):  # the first, should it be swallowed
            outer.check()
    assert signal.getsignal(signal.SIGINT) is before
    with Interruption() as fresh:
        fresh.check()


class StopsWhenCompared:
    """An argument of a compiled function; JAX compares those in C++."""

    stops = False

    def __hash__(self):
        return 0

    def __eq__(self, other):
        if self.stops:
            signal.raise_signal(signal.SIGTERM)
        return self is other


def test_a_signal_interrupts_even_if_jax_turns_it_into_another_exception(monkeypatch):
    function = jax.jit(lambda x, _: x, static_argnums=1)
    function(1.0, StopsWhenCompared())
    monkeypatch.setattr(StopsWhenCompared, "stops", True)
    with pytest.raises(Interrupted, match="SIGTERM") as raised, Interruption():
        function(1.0, StopsWhenCompared())
    assert "SIGTERM" in str(raised.value.__cause__)
    with pytest.raises(ImportError), Interruption():
        raise ImportError


def test_an_error_of_the_clean_up_is_reported():
    interruption = Interruption()
    with pytest.raises(Interrupted), interruption:
        signal.raise_signal(signal.SIGTERM)
    interruption.ignore()
    with pytest.raises(OSError, match="full"), interruption.restored():
        raise OSError("full")


def test_an_interrupt_in_the_guise_of_an_error_keeps_the_steps(data_dir, tmp_path, monkeypatch):
    def finish(*_):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            raise ValueError("of a cache") from None

    monkeypatch.setattr("cae_jax.runs.journal.Journal.finish", finish)
    result = cae_jax.fit(DENSE, tmp_path / "run", data_dir=data_dir)
    assert (result.interrupted, result.steps) == (signal.SIGTERM, 16)


def test_a_signal_after_the_last_step_leaves_a_finished_run(data_dir, tmp_path, monkeypatch):
    """Or its command would be printed with --overwrite."""
    from_params = cae_jax.Autoencoder.with_params

    def with_signal(*arguments):
        if (tmp_path / "run" / "result.json").exists():
            signal.raise_signal(signal.SIGTERM)
        return from_params(*arguments)

    monkeypatch.setattr(cae_jax.Autoencoder, "with_params", with_signal)
    result = cae_jax.fit(DENSE, tmp_path / "run", data_dir=data_dir)
    assert (result.interrupted, result.steps) == (None, 16)
