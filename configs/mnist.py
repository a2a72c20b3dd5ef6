"""The lab's network on MNIST, the recipe of Fashion-MNIST.

    python scripts/train.py --config configs/mnist.py --archives FOLDER

FOLDER holds the four original .gz archives; without --archives they are downloaded.
Result: not measured.
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(dataset="mnist")
