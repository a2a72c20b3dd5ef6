"""Times the parts of the native kernel, each in one thread, and prints a table.

    python -m benchmarks.native_parts
    python -m benchmarks.native_parts --flags=-mno-avx512f  # AVX2, on a CPU with AVX-512

CPU time of a gradient of 128 images, least of some rounds. The last lines say how much of a group's
time one thread has to spend, where others take the gradients with respect to kernels.
"""

import dataclasses
import shlex
import subprocess
import tempfile
from pathlib import Path

from cae_jax.cli import common
from cae_jax.markdown import table
from cae_jax.models import topology
from cae_jax.ops import compiler
from cae_jax.ops.native import build

SOURCE = Path(__file__).with_suffix(".cc")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Times the parts of the native kernel."""

    image_shape: tuple[int, int, int] = topology.IMAGE_SHAPE
    """Rows, columns and channels of the images."""

    features: tuple[int, ...] = (16, 8, 8)
    """Of the encoder's convolutions."""

    flags: str = ""
    """Further flags of the compiler."""

    rounds: int = 200
    """Of which the least time counts."""


def measure(flags: Flags) -> dict[str, float]:
    """Microseconds of each part, by name."""
    sizes = topology.convolutional(flags.image_shape, flags.features).kernel_sizes or ()
    options = [f"-D{name}={value}" for name, value in sizes] + shlex.split(flags.flags)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "parts"
        line = [*compiler.command(), *build.FLAGS, *options, "-I", str(build.SOURCES[0].parent)]
        subprocess.run([*line, str(SOURCE), "-o", str(program)], check=True)
        done = subprocess.run([program, str(flags.rounds)], capture_output=True, check=True)
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    return {name: float(time) for name, time in lines}


def main() -> None:
    with common.user_errors(flags=Flags):
        parts = measure(common.parse(Flags))
    weights, whole = parts.pop("weights"), parts.pop("all of a batch")
    total = sum(parts.values())
    rows = [[name, f"{time:.1f}", f"{time / total:.1%}"] for name, time in parts.items()]
    print(table(["part", "us", "share"], rows))
    others = sum(time for name, time in parts.items() if name.startswith("kernel's"))
    print(
        f"\nall parts in turn {whole:.0f} us; before them, once a call, the weights {weights:.0f}"
    )
    print(
        f"parts that other threads can take {others / total:.0%}, so that with two threads a "
        f"group takes at least {1 - others / total:.0%} of its time"
    )


if __name__ == "__main__":
    main()
