"""Kill-and-resume stress test: kills trainings at random and compares their final states."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from cae_jax.models import autoencoders
from cae_jax.runs import history
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.folder import checkpoint_folder, read_config
from cae_jax.training.optimizer import build_optimizer
from cae_jax.training.step import init_state

# Mostly the signal that no process can catch.
_SIGNALS = [signal.SIGKILL] * 8 + [signal.SIGTERM, signal.SIGINT]
# Columns of the history that hold measured times.
_TIMING = ("epoch_seconds", "images_per_second")


def stress(
    command: Sequence[str],
    folder: Path,
    kills: int,
    *,
    fresh: bool,
    seed: int = 0,
    damage: bool = False,
) -> int:
    """Kills trainings at random times and restarts each until it is finished.

    Args:
        command: the training, without ``--workdir`` and, if `fresh`, ``--data-dir``.
        folder: of the runs; must not exist.
        kills: minimum number of signals to send in total.
        fresh: prepare the data and compile in each run, so that kills hit these phases too.
        seed: seed of the times.
        damage: flip a bit of a file of the run, or cut it off, after half of the kills.

    Returns:
        the number of runs, each with the same final state, bit for bit, as an undisturbed one.

    Raises:
        AssertionError: a final state differs, or an exit code is unexpected.
    """
    rng, sent, runs, damaged = random.Random(seed), Counter(), 0, 0
    folder.mkdir(parents=True)
    reference = _Run(command, folder / "reference", fresh)
    assert reference.start(None) == 0, reference.log
    expected = final(reference.workdir)
    seconds = _Run(command, folder / "timed", fresh).warm_seconds()
    while sent.total() < kills:
        run, attempts = _Run(command, folder / f"run{runs}", fresh), 0
        while True:
            # Increase the delay, or the preparation of the data might never finish.
            number = rng.choice(_SIGNALS)
            delay = rng.uniform(0, seconds * (1 + attempts / 3))
            code = run.start(number, delay)
            if code == 0:
                break
            attempts += 1
            damaged += _damage(run.workdir, rng) if damage else 0
            sent[number.name] += 1
            assert code in (-number, 128 + number), f"exit code {code} after {number!r}\n{run.log}"
            print(f"{run.workdir.name}: {number.name} after {delay:.2f} s", flush=True)
        ended = final(run.workdir)
        names = expected.keys() | ended
        differing = [name for name in names if ended.get(name) != expected.get(name)]
        assert not differing, f"{run.workdir} differs from {reference.workdir} in {differing}"
        runs += 1
    counts = ", ".join(f"{count} {name}" for name, count in sorted(sent.items()))
    files = f" and {damaged} damaged files" if damage else ""
    print(f"{sent.total()} kills ({counts}){files} in {runs} runs: all ended with the same bits")
    return runs


def _damage(run: Path, rng: random.Random) -> int:
    """Flips a bit of a file of a run that can be restored, or cuts it off; returns 1 if so.

    The config cannot be restored, and neither can a checkpoint that is the only one.
    """
    steps = [path for path in run.glob("checkpoints/*") if path.name.isdecimal()]
    newest = max(steps, key=lambda path: int(path.name), default=run)
    inside = [path for path in newest.rglob("*") if path.is_file()] if len(steps) > 1 else []
    names = ("history.csv", "environment.json", "result.json", "summary.txt", ".cae-jax")
    files = [path for path in (*inside, *(run / name for name in names)) if path.is_file()]
    files = [path for path in files if path.stat().st_size]
    if not files or not (run / "config.json").exists() or rng.random() < 0.5:
        return 0
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if rng.random() < 0.5:
        del content[place:]
    else:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return 1


def final(run: Path) -> dict[str, Any]:
    """Returns the final state of a finished run, or of all members of a population.

    Args:
        run: its folder.

    Returns:
        the bytes of every array by its path in the `TrainState`, and ``history`` without times.
    """
    if members := [path.parent for path in sorted(run.glob("*/config.json"))]:
        assert (run / "members.png").exists()
        states = {member.name: final(member) for member in members}
        return {
            f"{name}/{key}": value for name, state in states.items() for key, value in state.items()
        }
    rows = history.read(run / "history.csv")
    untimed = [{k: v for k, v in row._asdict().items() if k not in _TIMING} for row in rows]
    arrays = leaves_at(run, rows[-1].step)
    return {**{name: leaf.tobytes() for name, leaf in arrays.items()}, "history": untimed}


def leaves_at(run: Path, step: int) -> dict[str, np.ndarray]:
    """Returns every array of a checkpoint by its path in the `TrainState`.

    Args:
        run: folder of a finished run.
        step: step of the checkpoint.
    """
    config, rows = read_config(run), history.read(run / "history.csv")
    model = autoencoders.build(config, nnx.Rngs(0))
    optimizer = build_optimizer(config, rows[-1].step)
    like = init_state(model, optimizer, rows[0].step)
    with Checkpoints(checkpoint_folder(run), config) as checkpoints:
        state = checkpoints.restore(step, like)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


class _Run:
    """A training that can be started several times."""

    def __init__(self, command: Sequence[str], workdir: Path, fresh: bool):
        self.workdir, self.log = workdir, ""
        self._command = [*command, "--workdir", str(workdir)]
        self._environment = dict(os.environ)
        if fresh:
            own = workdir.with_suffix(".own")
            self._command += ["--data-dir", str(own / "data")]
            self._environment |= {"XDG_CACHE_HOME": str(own / "cache")}
            self._environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def start(self, number: signal.Signals | None, delay: float = 0.0) -> int:
        """Runs the training, sends it a signal after `delay` seconds, returns its exit code."""
        process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
        )
        if number is not None:
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
        self.log, _ = process.communicate(timeout=600)
        return process.returncode

    def warm_seconds(self) -> float:
        """Times the whole training with prepared data and a filled compilation cache."""
        assert self.start(None) == 0, self.log
        shutil.rmtree(self.workdir)
        began = time.perf_counter()
        assert self.start(None) == 0, self.log
        return time.perf_counter() - began
