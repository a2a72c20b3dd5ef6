import sys

from cae_jax.cli import main

main(["summary", *sys.argv[1:]])
