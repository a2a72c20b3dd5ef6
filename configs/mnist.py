"""The Keras tutorial's network on MNIST, with the recipe of Fashion-MNIST.

    cae-jax train --config mnist

Downloads the four IDX files. If you have them in a folder: --data FOLDER.
Result: not measured.
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(data="mnist")
