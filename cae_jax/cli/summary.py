"""Print the layer table of a config's network.

    cae-jax summary --config wide

Every field of the config is a flag too and overrides it: --features 32 16 8.
"""

from cae_jax.cli import common

Flags = common.ConfigFlags


def run(flags: Flags) -> None:
    from cae_jax.models.summary import layer_table
    from cae_jax.models.topology import from_config

    print(layer_table(from_config(flags.train)))
