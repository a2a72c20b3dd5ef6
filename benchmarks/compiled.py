"""Compiles training and models for GPUs and TPUs that are not there, and tabulates the counts.

    python -m benchmarks.compiled --targets h100 t4 v5e v6e --check
    python -m benchmarks.compiled --json docs/benchmarks/compiled.json

Needs XLA's compilers: pip install -e ".[cuda13,tpu]". Nothing is run. Each case is one `cae-jax
compile`. With --check all programs of the backend that a run would take are compiled, and the exit
code is 1 where one of them exceeds its bounds.
"""

import dataclasses
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from cae_jax import UserError, atomic
from cae_jax.cli import common
from cae_jax.markdown import table

# The most kernels of a training step with noise, and megabytes where the compiler counts them: a
# tenth above the counts with jax 0.12.0 at a batch of 128.
BOUNDS: dict[tuple[str, str], tuple[int, float | None]] = {
    ("h100", "adam"): (62, None),
    ("h100", "soap"): (86, None),
    ("t4", "adam"): (68, None),
    ("t4", "soap"): (96, None),
    ("v5e", "adam"): (217, 134),
    ("v5e", "soap"): (290, 183),
    ("v6e", "adam"): (214, 136),
    ("v6e", "soap"): (286, 184),
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compiles training and models for GPUs and TPUs that are not there."""

    targets: tuple[str, ...] = ("h100", "a100", "l4", "t4", "v5e", "v6e", "v5p")
    """Devices, see `cae-jax compile`."""

    backends: tuple[Literal["matmul", "xla"], ...] = ("matmul", "xla")
    """Backends of the table."""

    optimizers: tuple[Literal["adam", "soap"], ...] = ("adam", "soap")
    """Optimizers; the table of docs/performance.md has adam alone."""

    batch_sizes: tuple[int, ...] = (128, 512, 4096)
    """Images per step of the table."""

    check: bool = False
    """Compile all programs at a batch of 128 and hold their bounds, in place of the table."""

    json: Path | None = None
    """Write all counts here."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        atomic.check_output(flags.json)
        results, problems = (check if flags.check else tabulate)(flags), []
        if flags.check:
            problems = [problem for result in results for problem in excesses(result)]
        if flags.json:
            with atomic.output_file(flags.json) as file:
                atomic.write_json(file, {"cases": results})
    for problem in problems:
        print(f"benchmarks.compiled: {problem}", file=sys.stderr)
    raise SystemExit(bool(problems))


def check(flags: Flags) -> list[dict[str, Any]]:
    """Compiles all programs with the backend that a run would take."""
    results = []
    for target, optimizer in itertools.product(flags.targets, flags.optimizers):
        every = ("--config", "denoise", "--optimizer", optimizer)
        # What the optimizer does not change is compiled once.
        only = () if optimizer == flags.optimizers[0] else ("--programs", "training")
        results.append(compile_case(target, *every, *only))
    return results


def tabulate(flags: Flags) -> list[dict[str, Any]]:
    """Compiles the training step of each case, and prints a row of each."""
    results, rows = [], []
    for case in itertools.product(
        flags.targets, flags.backends, flags.optimizers, flags.batch_sizes
    ):
        target, backend, optimizer, batch_size = case
        result = compile_case(
            *(target, "--backend", backend, "--optimizer", optimizer),
            *("--batch-size", str(batch_size), "--programs", "training"),
        )
        results.append(result)
        rows.append([*case, *cells(result["programs"]["training"])])
    titles = ("target", "backend", "optimizer", "batch", "kernels a step", "in a branch")
    print(table((*titles, "MB a step", "ms, estimated", "memory, MB", "compile, s"), rows))
    return results


def cells(training: dict[str, Any]) -> list[object]:
    """The counts of a training step as a row of the table has them."""
    moved, seconds = training["bytes_accessed"], training["estimated_seconds"]
    return [
        training["kernels"],
        training["kernels_in_branches"],
        "" if moved is None else f"{moved / 1e6:.0f}",
        "" if not seconds or seconds < 0 else f"{seconds * 1e3:.3f}",
        f"{training['needed_bytes'] / 1e6:,.0f}",
        f"{training['compile_seconds']:.0f}",
    ]


def compile_case(target: str, *flags: str) -> dict[str, Any]:
    """Calls `cae-jax compile` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.json"
        command = ["cae_jax", "compile", "--target", target, *flags, "--json", str(path)]
        print(" ".join(command[1:-2]), file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{target} {' '.join(flags)}: {done.stderr[-1000:]}")
        return {**json.loads(path.read_text()), "flags": list(flags)}


def excesses(result: dict[str, Any]) -> list[str]:
    """What the counts of a case have that they should not."""
    found, case = [], f"{result['target']} {' '.join(result['flags'])}"
    for name, counts in result["programs"].items():
        if counts["float64"]:
            found.append(f"{case}: {name} computes with float64")
        if counts["host_transfers"]:
            found.append(f"{case}: {name} exchanges data with the host")
        if result["backend"].startswith("matmul") and "convolution" in counts["kinds"]:
            found.append(f"{case}: {name} calls cuDNN")
        if not counts["fits"]:
            found.append(f"{case}: {name} does not fit the memory of the device")
    training = result["programs"]["training"]
    kernels, megabytes = BOUNDS[result["target"], result["optimizer"]]
    if training["kernels"] > kernels:
        found.append(f"{case}: {training['kernels']} kernels a step, at most {kernels} are allowed")
    if megabytes is not None and training["bytes_accessed"] / 1e6 > megabytes:
        moved = training["bytes_accessed"] / 1e6
        found.append(f"{case}: {moved:.0f} MB a step, at most {megabytes} are allowed")
    return found


if __name__ == "__main__":
    main()
