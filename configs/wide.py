"""A wider convolutional network on Fashion-MNIST.

    cae-jax train --config wide

Result: val_loss 0.2626 after 20 epochs, mean of seeds 0 to 2.
Time: 5.7 s/epoch on two cores of an AMD EPYC (Zen 5, AVX-512), jax 0.10.2.
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(features=(64, 32, 16), learning_rate=1e-2, b2=0.99)
