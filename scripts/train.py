import sys

from cae_jax.cli import main

main(["train", *sys.argv[1:]])
