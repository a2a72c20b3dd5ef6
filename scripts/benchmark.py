import sys

from cae_jax.cli import main

main(["benchmark", *sys.argv[1:]])
