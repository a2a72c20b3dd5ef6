"""The simple fully connected autoencoder 784-32-784 on Fashion-MNIST.

    python scripts/train.py --config configs/simple.py

Result: TODO
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(model="simple", learning_rate=3e-3, b2=0.999, warmup_steps=300)
