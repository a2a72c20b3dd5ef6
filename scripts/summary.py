"""Prints the layer table of a config's network.

python scripts/summary.py --config configs/fashion_mnist.py
"""

import dataclasses
from pathlib import Path

from cae_jax.cli import common
from cae_jax.config import load_config
from cae_jax.models.topology import layer_table, of_config


@dataclasses.dataclass(frozen=True)
class Flags:
    """Prints the layer table of a config's network."""

    config: Path = Path(__file__).parent.parent / "configs" / "fashion_mnist.py"
    """Python file with get_config()."""


def main() -> None:
    with common.user_errors():
        config = load_config(common.parse(Flags).config)
        print(layer_table(of_config(config)))


if __name__ == "__main__":
    main()
