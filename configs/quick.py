"""The Keras tutorial's network on Fashion-MNIST in 4 epochs: as good as Adam in 20.

cae-jax train --config quick
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(epochs=4, warmup_steps=500)
