"""Print the layer table of a config's network.

    cae-jax summary --config wide

Every field of the config is a flag too and overrides it: --features 32 16 8.
"""

from cae_jax.cli import common

Flags = common.ConfigFlags


def run(flags: Flags) -> None:
    from flax import nnx

    from cae_jax.models import autoencoders
    from cae_jax.models.summary import layer_table

    print(layer_table(autoencoders.build(flags.train, nnx.Rngs(0))))
