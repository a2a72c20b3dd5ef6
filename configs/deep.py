"""The deep fully connected autoencoder 784-128-64-32-64-128-784 on Fashion-MNIST.

    cae-jax train --config deep

Result: val_loss 0.2712 after 20 epochs, mean of seeds 0 to 4 (0.2705 to 0.2718); with Adam 0.2753.
Tuned on the last 10,000 training images: peaks from 1e-3 to 3e-2 (docs/results.md). An epoch takes
3.7 times that with Adam.
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(model="deep", learning_rate=3e-3, b2=0.999, warmup_steps=300)
