"""The lab's network on Fashion-MNIST with the best recipe for the lab's budget.

    python scripts/train.py --config configs/fashion_mnist.py

Result: TODO
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig()  # its defaults are this recipe
