"""Times training and inference, of cae-jax alone or next to other frameworks.

    python -m benchmarks.frameworks --batch-sizes 128 512 --backends native matmul xla per-step
    python -m benchmarks.frameworks --examples 7500 15000 30000 60000 --figure costs.png
    python -m benchmarks.frameworks --frameworks all --json frameworks.json
    python -m benchmarks.frameworks --end-to-end --epochs 20
    python -m benchmarks.frameworks --time-to 0.2894 --frameworks torch keras-tensorflow

Each case runs in processes of its own, one after the other, on Fashion-MNIST or on --images. Exits
with code 1 when a measurement fails or ends with a loss outside its expected range.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from benchmarks.frameworks import end_to_end, environment, summary, sweep, tables, time_to
from benchmarks.frameworks.case import FRAMEWORKS
from cae_jax import UserError, atomic
from cae_jax.cli import common
from cae_jax.cli.configs import load_config

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = ROOT / "configs"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Times training and inference, of cae-jax alone or next to other frameworks."""

    models: tuple[Literal["conv", "simple", "deep"], ...] = ("conv",)
    """Networks."""

    backends: tuple[Literal["auto", "native", "cuda", "matmul", "xla", "per-step"], ...] = ("auto",)
    """Backends of cae-jax; per-step is plain Flax with one jitted call per step."""

    batch_sizes: tuple[int, ...] = (128,)
    """Images per step."""

    examples: tuple[int, ...] = (60000,)
    """Numbers of training images."""

    epochs: int = 7
    """Timed epochs per process; with --end-to-end all epochs."""

    discard: int = 2
    """Epochs between the first one, which is reported separately, and the timed ones."""

    rounds: int = 1
    """Processes per case, all cases in turn; with --frameworks at least two."""

    frameworks: tuple[
        Literal["all", "keras-tensorflow", "keras-jax", "torch", "torch-compiled", "flax"], ...
    ] = ()
    """Other frameworks to compare with (pip install -e ".[frameworks]"), or all; everything is
    trained with Adam at 1e-3, model conv."""

    end_to_end: bool = False
    """Time scripts/train.py and Keras on TensorFlow as whole processes instead."""

    time_to: float | None = None
    """Time trainings until the validation loss is at most this instead, each framework with its
    best recipe."""

    seeds: int = 5
    """Trainings of each recipe with --time-to."""

    peak_gflops: float | None = None
    """Peak of the device in GFLOP/s; None measures a float32 matmul."""

    json: Path | None = None
    """Write all measurements here, including the seconds of each epoch."""

    figure: Path | None = None
    """Draw the cost of an epoch against batch size and number of images here."""

    images: Path | None = None
    """Square uint8 images [N, size, size, channels] in a .npy file, in place of Fashion-MNIST; the
    first nine tenths for training. Without --features those that are the default of the size."""

    features: tuple[int, ...] = ()
    """Features of the encoder's convolutions, model conv; the default where empty."""

    data_dir: Path | None = None
    """TFDS data directory; None takes TFDS_DATA_DIR, else TFDS's default."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        check(flags)
        machine = environment.collect()
        for name, value in machine.items():
            print(f"{name}: {value}")
        if flags.time_to is not None:
            result = measure_time_to(flags, flags.time_to)
        else:
            result = measure_end_to_end(flags) if flags.end_to_end else measure(flags)
        write(flags, {"environment": machine, **result})
    failed = [
        f"{row['framework']}: {row['failed']}" for row in result["summaries"] if row["failed"]
    ]
    if failed:
        print(f"benchmarks.frameworks: failed: {'; '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def check(flags: Flags) -> None:
    """Rejects flags that do not describe a benchmark.

    Raises:
        UserError: naming the flag.
    """
    least = {"epochs": 1, "discard": 0, "rounds": 1, "seeds": 1}
    for name, minimum in least.items():
        if getattr(flags, name) < minimum:
            raise UserError(
                f"--{name} is {getattr(flags, name)}; it takes a whole number of at least {minimum}"
            )
    for name in ("models", "backends", "batch_sizes", "examples"):
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
    if flags.end_to_end and (flags.frameworks or flags.figure):
        raise UserError(
            "--end-to-end takes --epochs and --rounds only; omit --frameworks and --figure"
        )
    if (flags.images or flags.features) and (flags.end_to_end or flags.time_to is not None):
        raise UserError("--images and --features are for epochs; omit --end-to-end and --time-to")
    if flags.features and flags.models != ("conv",):
        raise UserError("--features are those of --models conv; omit --models")
    if flags.frameworks and flags.models != ("conv",):
        raise UserError("--frameworks have the network of --models conv only; omit --models")
    for path in (flags.json, flags.figure):
        atomic.check_output(path)


def measure(flags: Flags) -> dict:
    """Measures all cases and prints their tables."""
    cases = sweep.build_cases(
        CONFIGS, flags.models, flags.backends, flags.batch_sizes, flags.examples, flags.data_dir
    )
    if flags.images is not None:
        cases = sweep.on_images(cases, flags.images)
    if flags.features:
        cases = sweep.with_features(cases, flags.features)
    if flags.frameworks:
        names = list(FRAMEWORKS) if "all" in flags.frameworks else flags.frameworks
        cases = sweep.add_frameworks(cases, sweep.installed(names))
    rounds = max(flags.rounds, 2) if flags.frameworks else flags.rounds
    measurements = sweep.measure(cases, flags.epochs, flags.discard, rounds)
    peak = flags.peak_gflops or sweep.matmul_gflops()
    summaries = [summary.summarise(measurement, peak) for measurement in measurements]
    print(f"peak: {peak:.0f} GFLOP/s, {'given' if flags.peak_gflops else 'of a float32 matmul'}")
    for key in ("device", "matmul_precision"):
        values = {one[key] for m in measurements for one in m["rounds"] if key in one}
        print(f"{key}: {', '.join(sorted(values)) or 'unknown'}")
    texts = [tables.training_table(summaries)]
    texts += [tables.start_table(measurements), tables.calls_table(measurements)]
    if flags.frameworks:
        texts += tables.winner_tables(summaries, flags.backends[0])
    print("", *texts, *summary.growth_lines(summaries), sep="\n\n")
    return {"peak_gflops": peak, "summaries": summaries, "measurements": measurements}


def measure_end_to_end(flags: Flags) -> dict:
    """Measures whole processes and prints their table."""
    train = ROOT / "scripts" / "train.py"
    summaries = end_to_end.measure(train, flags.epochs, flags.rounds, flags.data_dir)
    print(f"\n{flags.epochs} epochs:\n\n{tables.end_to_end_table(summaries)}")
    return {"epochs": flags.epochs, "summaries": summaries}


def measure_time_to(flags: Flags, target: float) -> dict:
    """Measures trainings to a loss and prints their table."""
    names = list(FRAMEWORKS) if "all" in flags.frameworks else flags.frameworks
    ours = load_config(CONFIGS / "fashion_mnist.py")
    summaries = time_to.measure(target, ours, sweep.installed(names), flags.seeds, flags.data_dir)
    print(f"\nUntil val_loss is {target}:\n\n{tables.time_to_table(summaries)}")
    return {"target": target, "summaries": summaries}


def write(flags: Flags, result: dict) -> None:
    """Writes the files that the flags name."""
    if flags.json:
        with atomic.writing(flags.json):
            atomic.write_json(flags.json, result)
    if flags.figure:
        from cae_jax import figures  # matplotlib takes a second to import

        if panels := summary.cost_lines(result["summaries"]):
            with atomic.writing(flags.figure):
                figures.save_costs(flags.figure, panels)


if __name__ == "__main__":
    main()
