"""The lab's network as the lab trained it, as far as it tells: Adadelta with Keras's settings.

    python scripts/train.py --config configs/lab.py

Result: TODO
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        optimizer="adadelta",
        learning_rate=1.0,
        rho=0.95,
        eps=1e-7,
        schedule="constant",
        warmup_steps=0,
    )
