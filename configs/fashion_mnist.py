from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig()
