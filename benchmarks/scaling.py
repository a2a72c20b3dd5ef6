"""Compiles a training step for several GPUs and TPUs that are not there, and counts its exchanges.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --targets h100 --json scaling.json

Needs XLA's compilers: pip install -e ".[cuda13,tpu]". Nothing is run. Each case is one `cae-jax
compile` of the default network: a run whose microbatches are spread, and a population.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.markdown import table

# Target, devices, images a step, and members of a population or None.
CASES = [
    *[("h100", count, batch, None) for count in (1, 2, 8) for batch in (128, 4096)],
    ("h100", 8, 128, 64),
    *[("v5e:2x4", count, batch, None) for count in (1, 8) for batch in (128, 4096)],
    ("v5e:2x4", 8, 128, 64),
    ("v5e:16x16", 256, 4096, None),
    ("v5e:16x16", 256, 128, 512),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Compiles a training step for several GPUs and TPUs that are not there."""

    targets: tuple[str, ...] = ("h100", "v5e")
    """Kinds of devices."""

    json: Path | None = None
    """Write all counts here."""


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        atomic.check_output(flags.json)
        chosen = [case for case in CASES if case[0].partition(":")[0] in flags.targets]
        results = [compile_case(*case) for case in chosen]
        rows = [row(*each) for each in zip(chosen, results, strict=True)]
        titles = ("target", "devices", "images a step", "members", "kernels a step", "exchanges")
        print(table((*titles, "kB to each device", "compile, s"), rows))
        common.write_json(flags.json, {"cases": results})


def compile_case(target: str, devices: int, batch: int, members: int | None) -> dict[str, Any]:
    """Compiles the training program of a case."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts.json"
        command = [sys.executable, "-m", "cae_jax", "compile", "--target", target]
        command += ["--devices", str(devices), "--batch-size", str(batch)]
        command += ["--programs", "training", "--json", str(file)]
        spread = ["--microbatches", str(devices)]
        command += spread if members is None else ["--members", str(members)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text())


def row(case: tuple[str, int, int, int | None], result: dict[str, Any]) -> list[object]:
    """A row of the table."""
    target, devices, batch, members = case
    training = result["programs"]["training"]
    found = training["collectives"]
    kinds = [kind for kind in training["kinds"] if kind.removesuffix("-start") in found]
    exchanges = ", ".join(
        f"{training['kinds'][kind]} {kind.removesuffix('-start')}" for kind in kinds
    )
    size = f"{sum(found.values()) / 1000:,.1f}"
    shown = (target, devices, batch, members or "-", training["kernels"], exchanges or "none")
    return [*shown, size, f"{training['compile_seconds']:.0f}"]


if __name__ == "__main__":
    main()
