"""Compiles training and models for GPUs and TPUs that are not there, and tabulates the counts.

    python -m benchmarks.compiled --targets h100 t4 v5e v6e --check
    python -m benchmarks.compiled --json docs/benchmarks/compiled.json
    python -m benchmarks.compiled --targets h100 v5e --members 1 32 512
    python -m benchmarks.compiled --kernels --json docs/benchmarks/kernels.json

Needs XLA's compilers: pip install -e ".[cuda13,tpu]". Nothing is run. Each case is one `cae-jax
compile`. With --check all programs of the backend that a run would take are compiled, and the exit
code is 1 where one of them exceeds its bounds.
"""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from cae_jax import UserError, atomic
from cae_jax.cli import common
from cae_jax.markdown import table
from cae_jax.models import topology
from cae_jax.ops.compiler import Sizes, UnavailableError
from cae_jax.ops.cuda import build

# The most kernels of a training step with noise, and megabytes where the compiler counts them: a
# tenth above the counts with jax 0.12.0 at a batch of 128. On an H100 also those of many members.
MANY = 512
# Of the backend cuda the aims, 12 and 20.
BOUNDS: dict[tuple[str, str, int | None], tuple[int, float | None]] = {
    ("h100 cuda", "adam", None): (12, None),
    ("h100 cuda", "soap", None): (20, None),
    ("t4 cuda", "adam", None): (12, None),
    ("t4 cuda", "soap", None): (20, None),
    ("h100", "adam", None): (62, None),
    ("h100", "soap", None): (86, None),
    ("h100", "adam", MANY): (78, None),
    ("t4", "adam", None): (68, None),
    ("t4", "soap", None): (96, None),
    ("v5e", "adam", None): (217, 134),
    ("v5e", "soap", None): (290, 183),
    ("v6e", "adam", None): (214, 136),
    ("v6e", "soap", None): (286, 184),
}


# What the compiler says of a kernel: its name, bytes that it spills, registers.
_RESOURCES = r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"

# The kinds of kernels that compute; the others move data.
COMPUTING = ("loop", "matmul", "reduction", "convolution", "library", "conditional", "cuda")

# Networks whose kernels are compiled for every GPU: of these none spills registers.
NETWORKS = {"fashion_mnist": ((28, 28, 1), (16, 8, 8)), "wide": ((28, 28, 1), (32, 16, 16))}
MOST_REGISTERS = 128  # with which a multiprocessor has the 512 threads of a block


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compiles training and models for GPUs and TPUs that are not there."""

    targets: tuple[str, ...] = ("h100", "a100", "l4", "t4", "v5e", "v6e", "v5p")
    """Devices, see `cae-jax compile`."""

    backends: tuple[Literal["matmul", "xla", "cuda"], ...] = ("matmul", "xla")
    """Backends of the table."""

    optimizers: tuple[Literal["adam", "soap"], ...] = ("adam", "soap")
    """Optimizers; the table of docs/performance.md has adam alone."""

    batch_sizes: tuple[int, ...] = (128, 512, 4096)
    """Images per step of the table."""

    members: tuple[int, ...] = ()
    """Tabulate these numbers of members at a batch of 128, in place of backends and batches."""

    check: bool = False
    """Compile all programs at a batch of 128 and hold their bounds, in place of the table."""

    kernels: bool = False
    """Tabulate the kernels of the backend cuda for every GPU, in place of the programs."""

    json: Path | None = None
    """Write all counts here."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        atomic.check_output(flags.json)
        task = check if flags.check else tabulate_members if flags.members else tabulate
        results, problems = ([], []) if flags.kernels and not flags.check else (task(flags), [])
        if flags.check:
            problems = [problem for result in results for problem in excesses(result)]
        if flags.kernels or flags.check:
            rows = kernels()
            results += rows
            problems += [problem for row in rows for problem in unfit(row)]
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
        if (f"{target} cuda", optimizer, None) in BOUNDS:
            own = ("--backend", "cuda", "--optimizer", optimizer, "--programs", "training")
            results.append(compile_case(target, *own))
        if (target, optimizer, MANY) in BOUNDS:
            many = ("--programs", "training", "--members", str(MANY))
            results.append(compile_case(target, *every, *many))
    return results


def kernels() -> list[dict[str, Any]]:
    """Compiles the kernels of some networks for every GPU, and prints what each of them takes."""
    nvrtc, found = build.Nvrtc(), []
    sources: list[tuple[str, str, Sizes]]
    sources = [("soap.cu", "fashion_mnist", (("SIDES", "9,16,16"),))]
    for name, (shape, features) in NETWORKS.items():
        sizes = topology.convolutional(shape, features).kernel_sizes
        assert sizes is not None  # it is no network for a rate
        sources.append(("network.cu", name, sizes))
    for (source, name, sizes), capability in itertools.product(sources, build.SHARED):
        try:
            binary, shared, log = nvrtc.compile(source, build.options_for(sizes, capability))
        except UnavailableError as error:
            found.append({"source": source, "network": name, "capability": capability})
            found[-1] |= {"reason": str(error)}
            continue
        for kernel, spilled, registers in re.findall(_RESOURCES, log, re.S):
            found.append(
                {
                    **{"source": source, "network": name, "capability": capability},
                    **{"kernel": kernel, "registers": int(registers), "spilled": int(spilled)},
                    **{"shared": shared, "binary": len(binary), "cuda": nvrtc.version},
                }
            )
    titles = ("network", "capability", "kernel", "registers", "spilled", "shared")
    print(table(titles, [[row[title] for title in titles] for row in found if "kernel" in row]))
    return found


def unfit(row: dict[str, Any]) -> list[str]:
    """What a kernel takes that it should not."""
    name = f"{row['network']} for {row['capability']}"
    if "reason" in row:  # a network that does not fit its shared memory
        fits = row["network"] == "fashion_mnist" or build.SHARED[row["capability"]] > 100
        return [f"{name}: {row['reason']}"] if fits else []
    found = []
    if row["spilled"]:
        found.append(f"{name}: {row['kernel']} spills {row['spilled']} bytes")
    if row["registers"] > MOST_REGISTERS:
        found.append(f"{name}: {row['kernel']} has {row['registers']} registers")
    if row["shared"] > 1024 * build.SHARED[row["capability"]]:
        found.append(f"{name}: {row['shared']} bytes of shared memory")
    return found


def tabulate_members(flags: Flags) -> list[dict[str, Any]]:
    """Compiles the training step of populations, and prints a row of each."""
    results, rows = [], []
    for case in itertools.product(flags.targets, flags.optimizers, flags.members):
        target, optimizer, members = case
        result = compile_case(
            *(target, "--optimizer", optimizer),
            *("--members", str(members), "--programs", "training"),
        )
        results.append(result)
        training = result["programs"]["training"]
        computing = sum(training["kinds"].get(kind, 0) for kind in COMPUTING)
        memory = f"{training['needed_bytes'] / 1e6:,.0f}"
        branches = training["kernels_in_branches"]
        rows.append([*case, training["kernels"], computing, branches, memory])
    titles = ("target", "optimizer", "members", "kernels a step", "that compute")
    print(table((*titles, "in a branch", "memory, MB"), rows))
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
    own = " cuda" if result["backend"].startswith("cuda") else ""
    key = result["target"] + own, result["optimizer"], result["members"]
    kernels, megabytes = BOUNDS[key]
    if training["kernels"] > kernels:
        found.append(f"{case}: {training['kernels']} kernels a step, at most {kernels} are allowed")
    if megabytes is not None and training["bytes_accessed"] / 1e6 > megabytes:
        moved = training["bytes_accessed"] / 1e6
        found.append(f"{case}: {moved:.0f} MB a step, at most {megabytes} are allowed")
    return found


if __name__ == "__main__":
    main()
