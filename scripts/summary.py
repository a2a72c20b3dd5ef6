"""Prints the layer table of a config's network.

python scripts/summary.py --config configs/fashion_mnist.py
"""

import dataclasses
from pathlib import Path

from flax import nnx

from cae_jax import cli, models
from cae_jax.config import load_config
from cae_jax.summary import layer_table


@dataclasses.dataclass(frozen=True)
class Flags:
    """Prints the layer table of a config's network."""

    config: Path = Path(__file__).parent.parent / "configs" / "fashion_mnist.py"
    """Python file with get_config()."""


def main() -> None:
    with cli.user_errors():
        config = load_config(cli.parse(Flags).config)
        print(layer_table(models.build(config, nnx.Rngs(0))))


if __name__ == "__main__":
    main()
