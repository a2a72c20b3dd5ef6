"""Prints the layer table of a config's network.

python scripts/summary.py --config configs/fashion_mnist.py
"""

import dataclasses
from pathlib import Path

from flax import nnx

from cae_jax.cli import common
from cae_jax.config import load_config
from cae_jax.models import autoencoders
from cae_jax.models.summary import layer_table


@dataclasses.dataclass(frozen=True)
class Flags:
    """Prints the layer table of a config's network."""

    config: Path = Path(__file__).parents[2] / "configs" / "fashion_mnist.py"
    """Python file with get_config()."""


def main() -> None:
    with common.user_errors():
        config = load_config(common.parse(Flags).config)
        print(layer_table(autoencoders.build(config, nnx.Rngs(0))))


if __name__ == "__main__":
    main()
