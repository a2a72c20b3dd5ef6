"""The deep fully connected autoencoder 784-128-64-32-64-128-784 on Fashion-MNIST.

    python scripts/train.py --config configs/deep.py

Result: TODO
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(model="deep", learning_rate=3e-3, b2=0.999, warmup_steps=300)
