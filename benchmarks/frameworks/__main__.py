"""Times training and use of the networks, alone or beside other libraries.

    python -m benchmarks.frameworks --batch-sizes 128 512 4096 --methods fused phase conv per-step
    python -m benchmarks.frameworks --examples 7500 15000 30000 60000 --figure costs.png
    python -m benchmarks.frameworks --peers --json peers.json
    python -m benchmarks.frameworks --whole-process --epochs 20

Every configuration has processes of its own, one after the other; all of them on Fashion-MNIST.
Exit code 1 where a measurement failed or ended with a loss outside its band.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from benchmarks.frameworks import end_to_end, environment, summary, sweep, tables
from cae_jax import UserError, atomic
from cae_jax.cli import common

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = ROOT / "configs"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Times training and use of the networks, alone or beside other libraries."""

    models: tuple[Literal["conv", "simple", "deep"], ...] = ("conv",)
    """Networks."""

    methods: tuple[Literal["auto", "fused", "phase", "conv", "per-step"], ...] = ("auto",)
    """Ways of computing them; per-step is plain Flax with one jitted call a step."""

    batch_sizes: tuple[int, ...] = (128,)
    """Images in a step."""

    examples: tuple[int, ...] = (60000,)
    """Numbers of training images."""

    epochs: int = 7
    """Timed epochs of a process; with --whole-process all epochs."""

    discard: int = 2
    """Epochs between the first one, which is reported apart, and the timed ones."""

    rounds: int = 1
    """Processes for each configuration, all configurations in turn; --peers takes two at least."""

    peers: bool = False
    """Beside other libraries (pip install "cae-jax[peers]"): all with Adam at 1e-3, model conv."""

    peer_names: tuple[
        Literal["keras-tensorflow", "keras-jax", "torch", "torch-compiled", "flax"], ...
    ] = ("keras-tensorflow", "keras-jax", "torch", "torch-compiled", "flax")
    """The libraries of --peers."""

    whole_process: bool = False
    """Time the command scripts/train.py against Keras on TensorFlow from start to end instead."""

    peak_gflops: float | None = None
    """1e9 operations a second that the device can do; None measures a float32 matmul."""

    json: Path | None = None
    """Write all measurements here, each epoch's seconds too."""

    figure: Path | None = None
    """Draw the cost of an epoch against batch size and number of images here."""

    data_dir: Path | None = None
    """Where TFDS keeps data sets; None takes TFDS_DATA_DIR, else TFDS's own default."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        check(flags)
        machine = environment.collect()
        for name, value in machine.items():
            print(f"{name}: {value}")
        result = measure_whole(flags) if flags.whole_process else measure(flags)
        write(flags, {"facts": machine, **result})
    failed = [f"{row['contender']}: {row['failed']}" for row in result["rows"] if row["failed"]]
    if failed:
        print(f"benchmarks.frameworks: failed: {'; '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def check(flags: Flags) -> None:
    """Refuses what no configuration can be made of."""
    least = {"epochs": 1, "discard": 0, "rounds": 1}
    for name, minimum in least.items():
        if getattr(flags, name) < minimum:
            raise UserError(
                f"--{name} is {getattr(flags, name)}; it takes a whole number of at least {minimum}"
            )
    for name in ("models", "methods", "batch_sizes", "examples"):
        if not getattr(flags, name):
            raise UserError(f"--{name.replace('_', '-')} is empty; give at least one")
    if not 1 <= min(flags.batch_sizes) <= max(flags.batch_sizes) <= min(flags.examples):
        raise UserError("--batch-sizes take whole numbers from 1 to the smallest of --examples")
    if max(flags.examples) > 60000:
        raise UserError(f"--examples is {max(flags.examples)}; Fashion-MNIST has 60000 images")
    if flags.figure and len(flags.batch_sizes) == len(flags.examples) == 1:
        raise UserError("--figure has nothing to draw; give several --batch-sizes or --examples")
    if flags.peak_gflops is not None and not flags.peak_gflops > 0:
        raise UserError(f"--peak-gflops is {flags.peak_gflops}; it takes a positive number")
    if flags.whole_process and (flags.peers or flags.figure):
        raise UserError("--whole-process goes with --epochs and --rounds; leave --peers, --figure")
    if flags.peers and flags.models != ("conv",):
        raise UserError("--peers know the network of --models conv only; leave --models out")


def measure(flags: Flags) -> dict:
    """Measures all configurations and prints their tables."""
    configurations = sweep.configurations(
        CONFIGS, flags.models, flags.methods, flags.batch_sizes, flags.examples, flags.data_dir
    )
    if flags.peers:
        names = sweep.installed(flags.peer_names)
        configurations = sweep.beside_peers(configurations, names)
    least = 2 if flags.peers else 1
    measurements = sweep.measure(
        configurations, flags.epochs, flags.discard, max(flags.rounds, least)
    )
    peak = flags.peak_gflops or sweep.matmul_gflops()
    summaries = [summary.summarise(measurement, peak) for measurement in measurements]
    print(f"peak: {peak:.0f} GFLOP/s, {'given' if flags.peak_gflops else 'of a float32 matmul'}")
    for key in ("device", "matmul_precision"):
        values = {one[key] for m in measurements for one in m["rounds"] if key in one}
        print(f"{key}: {', '.join(sorted(values)) or 'unknown'}")
    texts = [tables.training_table(summaries)]
    texts += [tables.start_table(measurements), tables.calls_table(measurements)]
    if flags.peers:
        texts += tables.winners_tables(summaries, flags.methods[0])
    print("", *texts, *summary.growth_lines(summaries), sep="\n\n")
    return {"peak_gflops": peak, "rows": summaries, "measurements": measurements}


def measure_whole(flags: Flags) -> dict:
    """Measures whole processes and prints their table."""
    train = ROOT / "scripts" / "train.py"
    summaries = end_to_end.measure(train, flags.epochs, flags.rounds, flags.data_dir)
    print(f"\n{flags.epochs} epochs:\n\n{tables.whole_table(summaries)}")
    return {"epochs": flags.epochs, "rows": summaries}


def write(flags: Flags, result: dict) -> None:
    """The files that were asked for."""
    try:
        if flags.json:
            atomic.write_json(flags.json, result)
        if flags.figure:
            from cae_jax import figures  # matplotlib takes a second

            if panels := summary.cost_lines(result["rows"]):
                figures.save_costs(flags.figure, panels)
    except OSError as error:
        raise UserError(f"--json or --figure cannot be written ({error})") from error


if __name__ == "__main__":
    main()
