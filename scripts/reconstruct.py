import sys

from cae_jax.__main__ import main

main(["reconstruct", *sys.argv[1:]])
