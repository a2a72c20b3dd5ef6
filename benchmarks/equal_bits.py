"""Trains one run by many numbers of processes and devices, and prints the SHA-256 of its end.

    python -m benchmarks.equal_bits
    python -m benchmarks.equal_bits --backends native --processes 1 2 --devices 1 4 --budgets all

Each row is a training of 1,000 images with noise in new processes of this machine, whose devices
are forced ones of the CPU, and which all have as many threads. The SHA-256 covers parameters,
optimizer state, losses and history. The exit code is 1 if a backend has more than one.
"""

import dataclasses
import hashlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from benchmarks.kill_and_resume import final
from cae_jax.cli import common

_MICROBATCHES = 8
# The last batch is not full, and the microbatches of all have rests.
_TRAIN = ("--train-examples", "950", "--test-examples", "300", "--batch-size", "100")
_TRAIN = (*_TRAIN, "--microbatches", str(_MICROBATCHES), "--noise", "gaussian")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Trains one run by many numbers of processes and devices."""

    backends: tuple[Literal["native", "matmul", "xla"], ...] = ("native", "matmul", "xla")
    """Each has its own bits."""

    optimizers: tuple[str, ...] = ("soap", "adam")
    """Of the runs."""

    processes: tuple[int, ...] = (1, 2, 3, 4)
    """That train together."""

    devices: tuple[int, ...] = (1, 2, 3, 4, 8)
    """Of each process; at most eight in all."""

    budgets: tuple[str, ...] = ("all", "4.4MB")
    """Of images on a device; all keeps them there."""

    epochs: int = 2
    """Of each training."""


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        print("backend | optimizer | processes | devices of each | budget | SHA-256")
        different = 0
        for backend, optimizer in itertools.product(flags.backends, flags.optimizers):
            found = set()
            for case in itertools.product(flags.processes, flags.devices, flags.budgets):
                if case[0] * case[1] <= _MICROBATCHES:
                    found.add(digest := train(backend, optimizer, *case, flags.epochs))
                    print(*(backend, optimizer, *case, digest), sep=" | ", flush=True)
            different += len(found) - 1
    raise SystemExit(bool(different))


def train(
    backend: str, optimizer: str, processes: int, devices: int, budget: str, epochs: int
) -> str:
    """Trains a run; returns the SHA-256 of its end."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "cae_jax", "train", *_TRAIN, "--workdir", str(run)]
        command += ["--backend", backend, "--optimizer", optimizer, "--epochs", str(epochs)]
        command += ["--devices", str(devices)]
        command += [] if budget == "all" else ["--device-budget", budget]
        if processes > 1:
            with socket.create_server(("localhost", 0)) as server:
                port = server.getsockname()[1]
            command += ["--coordinator", f"localhost:{port}", "--num-processes", str(processes)]
        environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        # XLA has a thread for each device, and the bits of its convolutions depend on their number.
        environment["NPROC"] = str(_MICROBATCHES)
        started = [
            subprocess.Popen(
                [*command, *(["--process-id", str(k)] if processes > 1 else [])],
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL,
            )
            for k in range(processes)
        ]
        for each in started:
            if code := each.wait():
                raise SystemExit(code)
        end = sorted(final(run).items())
    return hashlib.sha256(repr(end).encode()).hexdigest()


if __name__ == "__main__":
    main()
