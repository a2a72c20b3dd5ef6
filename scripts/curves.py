import sys

from cae_jax.__main__ import main

main(["curves", *sys.argv[1:]])
