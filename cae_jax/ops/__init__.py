"""Layers on several backends; exports nothing, `cae_jax.ops.backend` chooses a backend."""
