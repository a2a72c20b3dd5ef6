import sys

from cae_jax.cli import main

main(["export", *sys.argv[1:]])
