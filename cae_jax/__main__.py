"""`python -m cae_jax` is the command cae-jax."""

from cae_jax.cli import main

main()
