"""Train an autoencoder, or many at once; repeated with the same --workdir, it resumes.

    cae-jax train --config denoise --epochs 50 --seed 1
    cae-jax train --seeds 0 1 2 3 --sweep learning_rate=1e-2,3e-2 b2=0.95,0.99

Defaults are in brackets; a config sets them, and a flag overrides the config.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import cae_jax
from cae_jax.cli import common, process
from cae_jax.config import TrainConfig, from_dict, to_dict
from cae_jax.errors import UserError
from cae_jax.ops import cache
from cae_jax.runs.interruption import Interrupted

if TYPE_CHECKING:
    from cae_jax.runs.peers import Peers


@common.flags
class Flags(common.ConfigFlags):
    workdir: Path | None = None
    """Run directory; default: runs/CONFIG[_many]."""

    overwrite: bool = False
    """Replace an existing run instead of resuming it."""

    start_from: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Start with the weights of this run."""

    seeds: tuple[int, ...] = ()
    """Train one run for each of these seeds."""

    sweep: tuple[str, ...] = ()
    """Train one for each combination: FIELD=VALUE,VALUE."""

    members_per_program: int | None = None
    """Runs of a program; default: what fits, on a CPU 1."""

    chunk_steps: int | None = None
    """Steps per progress update; the result is the same."""

    backend: common.Backend = "auto"
    """xla, matmul, native (CPU), cuda (GPU), auto."""

    device_budget: str | None = None
    """Memory for images, as 2GiB; more are streamed."""

    devices: int = 1
    """Devices that train, to the same bits."""

    data: common.Data = common.DataFlags()

    run: common.Processes = common.ProcessFlags()


def run(flags: Flags) -> None:
    from cae_jax.runs.peers import join

    peers = join(**vars(flags.run))
    with peers.guard():
        result = _train(flags, peers)
        if result.interrupted is not None and peers.count > 1:
            process.finish()  # process 0 may still save
    if result.interrupted is not None:
        # Without a step, there is nothing that another --overwrite would lose.
        raise (common.Resumable if result.steps else Interrupted)(result.interrupted)


def _train(flags: Flags, peers: "Peers") -> "cae_jax.FitResult | cae_jax.PopulationResult":
    cache.use_compilation_cache()
    many = bool(flags.seeds or flags.sweep)
    workdir = flags.workdir or Path("runs") / (Path(flags.config).stem + ("_many" if many else ""))
    if not any((workdir.expanduser() / name).exists() for name in ("config.json", "members.json")):
        common.check_used(flags)  # a run of an earlier version may have what it ignores
    options: dict[str, Any] = {
        "overwrite": flags.overwrite,
        "chunk_steps": flags.chunk_steps,
        "backend": flags.backend,
        "device_budget": flags.device_budget,
        "devices": flags.devices,
        **vars(flags.data),
    }
    if many:
        if flags.start_from is not None:
            raise UserError("`start_from` is for one run; leave it out, or `seeds` and `sweep`")
        if peers.count > 1:
            raise UserError(
                "`seeds` and `sweep` take one process, whose `devices` share the members; start "
                "other processes with other seeds and another `workdir`"
            )
        configs = members(flags.train, flags.seeds, flags.sweep)
        options["members_per_program"] = flags.members_per_program
        result = cae_jax.fit_population(configs, workdir, **options)
        if result.interrupted is None:
            from cae_jax.evaluation import members as comparison

            comparison.write_summary(workdir.expanduser(), result.members)
            print(comparison.summary(result.members))
        return result
    if flags.members_per_program is not None:
        raise UserError(
            "`members_per_program` is for `seeds` and `sweep`; give one, or leave it out"
        )
    return cae_jax.fit(flags.train, workdir, start_from=flags.start_from, peers=peers, **options)


def members(config: TrainConfig, seeds: Sequence[int], sweep: Sequence[str]) -> list[TrainConfig]:
    """The configs of all combinations of values.

    Raises:
        UserError: a part of `sweep` that is not FIELD=VALUE,VALUE, or an invalid value.
    """
    axes = dict(_axis(part) for part in sweep)
    if len(axes) < len(sweep):
        raise UserError("`sweep` has a field twice; give all of its values at once")
    if "seed" in axes and seeds:
        raise UserError("`sweep` has seed; leave it out, or `seeds`")
    if seeds:
        axes["seed"] = list(seeds)
    return [
        from_dict({**to_dict(config), **dict(zip(axes, values, strict=True))})
        for values in itertools.product(*axes.values())
    ]


def _axis(part: str) -> tuple[str, list[Any]]:
    """Parses a field and its values: ``b2=0.95,0.99``."""
    name, _, values = part.partition("=")
    if not name or not values:
        raise UserError(f"`sweep` has {part!r}; it takes FIELD=VALUE,VALUE such as b2=0.95,0.99")
    return name.replace("-", "_"), [common.literal(text) for text in values.split(",")]
