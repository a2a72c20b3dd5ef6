"""The deep fully connected autoencoder 784-128-64-32-64-128-784 on Fashion-MNIST.

    cae-jax train --config deep

Result: val_loss 0.2751 after 20 epochs, seed 0.
Time: 0.4 s/epoch on two cores of an AMD EPYC (Zen 5, AVX-512), jax 0.10.2.
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(model="deep", learning_rate=3e-3, b2=0.999, warmup_steps=300)
