import sys

from cae_jax.cli import main

main(["report", *sys.argv[1:]])
