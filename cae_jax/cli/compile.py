"""Compile a config's programs for a GPU or TPU that need not be present, and count their work.

    cae-jax compile --target t4 --config wide --json t4.json
    cae-jax compile --target v5e --batch-size 512 --programs training

Nothing is run. Prints for each program the kernels of a step by kind, those that break a CUDA
graph, the memory and, if the compiler reports them, operations, bytes and estimated time.
"""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.errors import UserError

if TYPE_CHECKING:
    from cae_jax.ops.backend import Backend
    from cae_jax.ops.targets import Target
    from cae_jax.training.programs import Program

# Number of images if the config does not limit it.
TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000
Name = Literal["training", "evaluation", "noise", "encode", "decode", "reconstruct"]
NAMES: tuple[Name, ...] = get_args(Name)


@common.flags
class Flags(common.ConfigFlags):
    target: str
    """h100, a100, l4, t4, v5e, v5p, v6e or a TPU topology such as v5e:2x4."""

    programs: tuple[Name, ...] = NAMES
    """What to compile."""

    backend: Literal["auto", "xla", "matmul", "cuda"] = "auto"
    """xla, matmul, cuda, or auto: as a run on that device."""

    members: int | None = None
    """Compile for a population of this many members."""

    devices: int = 1
    """Compile for this number, over which microbatches or members are spread."""

    json: Path | None = None
    """Write the counts to this file too."""


def run(flags: Flags) -> None:
    if flags.members is not None and flags.members < 1:
        raise UserError(f"`members` is {flags.members}; it takes a whole number of at least 1")
    if not 1 <= flags.devices <= (most := flags.members or flags.train.microbatches):
        raise UserError(
            f"`devices` is {flags.devices}; it takes 1 to {most}, the `microbatches` or `members`"
        )
    common.check_used(flags)
    atomic.check_output(flags.json)
    import jax

    # Devices of this machine are not used, and may be busy.
    jax.config.update("jax_platforms", "cpu")
    from importlib import metadata

    from cae_jax.models import topology
    from cae_jax.ops import targets
    from cae_jax.ops.backend import choose

    target = targets.find(flags.target, flags.devices)
    network, precision = topology.from_config(flags.train), flags.train.precision
    backend = choose(
        network, flags.backend, target.platform, precision, target.capability or "none"
    )
    results: dict[str, Any] = {
        "target": flags.target,
        "device": f"{target.title}, compiled, not run",
        "jax": metadata.version("jax"),
        "config": Path(flags.config).stem,
        "optimizer": flags.train.optimizer,
        "backend": f"{backend.name}: {backend.reason}",
        "batch_size": flags.train.batch_size,
        "precision": precision,
        "members": flags.members,
        "devices": flags.devices,
        "programs": {},
    }
    common.print_values(
        {name: results[name] for name in ("device", "jax", "backend", "batch_size")}
    )
    for name, program in programs(flags, backend, target).items():
        results["programs"][name] = described = describe(program, target)
        print(f"\n{name}")
        common.print_values(described)
    common.write_json(flags.json, results)


def programs(flags: Flags, backend: "Backend", target: "Target") -> "dict[str, Program]":
    """The programs of a config selected by the flags, by name."""
    from cae_jax.models import autoencoders
    from cae_jax.training import programs
    from cae_jax.training.devices import Devices

    config = flags.train
    images, tests = config.train_examples or TRAIN_IMAGES, config.test_examples or TEST_IMAGES
    model = autoencoders.abstract(config)
    members = [dataclasses.replace(config, seed=seed) for seed in range(flags.members or 1)]
    devices = Devices.of(target.devices, config, len(members))
    available = {
        "training": programs.training(members, model, backend, images, devices=devices),
        "evaluation": programs.evaluation(members, model, backend, tests, devices=devices),
        "noise": programs.noise(config, model, tests),
        **programs.inference(model, backend),
    }
    # A config without noise has no such program.
    return {name: found for name in flags.programs if (found := available[name]) is not None}


def describe(program: "Program", target: "Target") -> dict[str, Any]:
    """Compiles a program and describes the result, as JSON types."""
    from cae_jax.ops import hlo

    began = time.perf_counter()
    compiled = program.compile(target.sharding)
    seconds = time.perf_counter() - began
    parsed = hlo.parse(compiled.as_text() or "")
    kernels, memory = parsed.kernels(), compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    assert memory is not None  # both compilers have it
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes
    needed += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return {
        "kernels": kernels.step.total(),
        "kinds": dict(kernels.step.most_common()),
        "kernels_in_branches": kernels.branches.total(),
        "kernels_outside_the_loop": kernels.outside.total(),
        "graph_breaks": dict(kernels.graph_breaks) if target.platform == "gpu" else None,
        "collectives": parsed.collectives(),
        "host_transfers": parsed.host_transfers,
        "float64": parsed.float64,
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        # XLA's model has a negative value for what it does not know.
        "estimated_seconds": max(cost.get("optimal_seconds") or 0, 0) or None,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "needed_bytes": needed,
        "device_bytes": target.memory,
        "fits": needed <= target.memory,
        "compile_seconds": seconds,
    }
