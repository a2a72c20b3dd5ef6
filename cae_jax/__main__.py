"""The process of the command cae-jax, which is `python -m cae_jax` too."""

import sys
from collections.abc import Sequence

from cae_jax import cli
from cae_jax.cli import process


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command in this process, which is its own.

    Args:
        arguments: see `cae_jax.cli.main`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    process.start(["cae-jax", *words])
    with process.checked_output():
        cli.main(words)
    process.finish()


if __name__ == "__main__":
    main()
