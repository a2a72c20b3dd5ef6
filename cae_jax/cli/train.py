"""Train an autoencoder, or many at once; repeated with the same --workdir, it resumes.

    cae-jax train --config denoise --epochs 50 --seed 1
    cae-jax train --seeds 0 1 2 3 --sweep learning_rate=1e-2,3e-2 b2=0.95,0.99

Every field of the config is a flag too and overrides it.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

import cae_jax
from cae_jax.cli import common
from cae_jax.config import TrainConfig, from_dict, to_dict
from cae_jax.errors import UserError
from cae_jax.ops import cache
from cae_jax.runs.interruption import Interrupted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(common.ConfigFlags):
    workdir: Path | None = None
    """Directory of the run; None takes runs/ and the name of the config, with _many for many."""

    overwrite: bool = False
    """Replace an existing run instead of resuming it."""

    start_from: Annotated[Path | None, tyro.conf.arg(aliases=["--from"])] = None
    """Run of the same network, whose weights a new run begins with."""

    seeds: tuple[int, ...] = ()
    """Train a member with each of these seeds, each a run in a directory of --workdir."""

    sweep: tuple[str, ...] = ()
    """Train a member with each combination of values: FIELD=VALUE,VALUE for one or more numbers of
    the optimizer; with --seeds each of them with each seed."""

    members_per_program: int | None = None
    """Members that a program computes at once; None takes 1 on a CPU, else what memory holds."""

    chunk_steps: int | None = None
    """Steps between two updates of the progress bar, at least a tenth of a second by default; the
    result does not depend on it."""

    backend: common.Backend = "auto"
    """How the layers are computed: XLA convolutions, matmuls, or the native kernel (CPU only)."""

    data: tyro.conf.OmitArgPrefixes[common.DataFlags] = dataclasses.field(
        default_factory=common.DataFlags
    )


def run(flags: Flags) -> None:
    cache.use_compilation_cache()
    many = bool(flags.seeds or flags.sweep)
    workdir = flags.workdir or Path("runs") / (Path(flags.config).stem + ("_many" if many else ""))
    options: dict[str, Any] = {
        "overwrite": flags.overwrite,
        "chunk_steps": flags.chunk_steps,
        "backend": flags.backend,
        **vars(flags.data),
    }
    if many:
        if flags.start_from is not None:
            raise UserError("`start_from` is for one run; leave it out, or `seeds` and `sweep`")
        configs = members(flags.train, flags.seeds, flags.sweep)
        options["members_per_program"] = flags.members_per_program
        result = cae_jax.fit_population(configs, workdir, **options)
        if result.interrupted is None:
            from cae_jax.evaluation import members as comparison

            comparison.write_summary(workdir.expanduser(), result.members)
            print(comparison.summary(result.members))
    elif flags.members_per_program is not None:
        raise UserError(
            "`members_per_program` is for `seeds` and `sweep`; give one, or leave it out"
        )
    else:
        result = cae_jax.fit(flags.train, workdir, start_from=flags.start_from, **options)
    if result.interrupted is not None:
        # Without a step the run that --overwrite replaces is back.
        raise (common.Resumable if result.steps else Interrupted)(result.interrupted)


def members(config: TrainConfig, seeds: Sequence[int], sweep: Sequence[str]) -> list[TrainConfig]:
    """The configs of all combinations of values.

    Raises:
        UserError: a part of `sweep` that is no field with values, or a value that it does not take.
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
    """A field and its values: ``b2=0.95,0.99``."""
    name, _, values = part.partition("=")
    if not name or not values:
        raise UserError(f"`sweep` has {part!r}; it takes FIELD=VALUE,VALUE such as b2=0.95,0.99")
    return name.replace("-", "_"), [_value(text) for text in values.split(",")]


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
