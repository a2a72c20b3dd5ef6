"""Write a report on runs as one self-contained HTML page.

    cae-jax report runs/fashion_mnist runs/denoise --out report.html

The page shows configs, curves, tables and images. Its networks run in the browser: a slider
interpolates between two images, and noise is added and removed.
"""

from pathlib import Path
from typing import Annotated

import tyro

from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.ops import cache


@common.flags
class Flags:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Runs and populations on one data set; they may still be training."""

    out: Path = Path("report.html")
    """The page."""

    moved: Annotated[str | None, tyro.conf.arg(name="data")] = None
    """The path of the images, if they have moved since the training."""

    data: common.Data = common.DataFlags()


def run(flags: Flags) -> None:
    from cae_jax.report import collect, page

    atomic.check_output(flags.out)
    cache.use_compilation_cache()
    page.write(flags.out, collect.collect(flags.runs, flags.moved, **vars(flags.data)))
    print(f"{flags.out}: {flags.out.stat().st_size / 1e6:.1f} MB; open it in a browser")
