import sys

from cae_jax.cli import main

main(["evaluate", *sys.argv[1:]])
