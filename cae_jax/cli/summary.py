"""Print the layer table of a config's network.

    cae-jax summary --config wide

Every field of the config is a flag too and overrides it: --features 32 16 8.
"""

from cae_jax.cli import common

Flags = common.ConfigFlags


def run(flags: Flags) -> None:
    from cae_jax.config import default_features
    from cae_jax.models.summary import layer_table
    from cae_jax.models.topology import from_config

    network = from_config(flags.train)
    print(layer_table(network))
    if network.model == "conv" and flags.train.features is None:
        features, purpose = default_features(flags.train.noise, network.image_shape)
        widths = " ".join(map(str, features))
        print(f"Features {widths}, the default for {purpose}; see docs/own-images.md")
