"""Train an autoencoder; repeated with the same --workdir, it resumes.

    cae-jax train --config denoise --epochs 50 --seed 1

Every field of the config is a flag too and overrides it.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

import cae_jax
from cae_jax.cli import common
from cae_jax.ops import cache
from cae_jax.runs.interruption import Interrupted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(common.ConfigFlags):
    workdir: Path | None = None
    """Directory of the run; None takes runs/ and the name of the config."""

    overwrite: bool = False
    """Replace an existing run instead of resuming it."""

    start_from: Annotated[Path | None, tyro.conf.arg(aliases=["--from"])] = None
    """Run of the same network, whose weights a new run begins with."""

    chunk_steps: int = 67
    """Steps between two updates of the progress bar; the result does not depend on it."""

    backend: common.Backend = "auto"
    """How the layers are computed: XLA convolutions, matmuls, or the native kernel (CPU only)."""

    data: tyro.conf.OmitArgPrefixes[common.DataFlags] = dataclasses.field(
        default_factory=common.DataFlags
    )


def run(flags: Flags) -> None:
    cache.use_compilation_cache()
    result = cae_jax.fit(
        flags.train,
        flags.workdir or Path("runs") / Path(flags.config).stem,
        overwrite=flags.overwrite,
        start_from=flags.start_from,
        chunk_steps=flags.chunk_steps,
        backend=flags.backend,
        **vars(flags.data),
    )
    if result.interrupted is not None:
        # Without a step the run that --overwrite replaces is back.
        raise (common.Resumable if result.steps else Interrupted)(result.interrupted)
