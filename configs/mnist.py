"""The Keras tutorial's network on MNIST, with the recipe of Fashion-MNIST.

    cae-jax train --config mnist --archives DIR

DIR holds the four original .gz IDX files; without --archives they are downloaded.
Result: not measured.
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(data="mnist")
