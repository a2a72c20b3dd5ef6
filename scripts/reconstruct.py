import sys

from cae_jax.cli import main

main(["reconstruct", *sys.argv[1:]])
