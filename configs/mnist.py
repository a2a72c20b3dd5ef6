"""The Keras tutorial's network on MNIST, with the recipe of Fashion-MNIST.

    cae-jax train --config mnist

The images are downloaded. To use IDX files that you have, pass their folder as --data.
Result: not measured.
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(data="mnist")
