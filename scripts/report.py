"""Writes a report on runs: one HTML page that needs nothing else.

python scripts/report.py runs/fashion_mnist runs/denoise --out report.html
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.ops import cache
from cae_jax.report import collect, page


@dataclasses.dataclass(frozen=True)
class Flags:
    """Writes a report on runs: one HTML page with configuration, curves, tables and pictures.

    The networks run in the browser: a slider walks between two images, noise is added and removed.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that training wrote, all on one data set; their training may still go on."""

    out: Path = Path("report.html")
    """The page."""

    data_dir: Path | None = None
    """Where TFDS keeps data sets; None takes TFDS_DATA_DIR, else TFDS's own default."""

    archives: Path | None = None
    """Folder with the four original .gz archives; None takes shipped or downloaded ones."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        atomic.check_output(flags.out)
        cache.use_compilation_cache()
        page.write(
            flags.out, collect.collect(flags.runs, data_dir=flags.data_dir, archives=flags.archives)
        )
        print(f"{flags.out}: {flags.out.stat().st_size / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    main()
