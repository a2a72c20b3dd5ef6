import sys

from cae_jax.cli import main

main(["curves", *sys.argv[1:]])
