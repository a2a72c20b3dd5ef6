"""Time training and use of a config on this device."""

from cae_jax.cli import common

Flags = common.ConfigFlags
