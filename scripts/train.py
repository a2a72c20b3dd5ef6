import sys

from cae_jax.__main__ import main

main(["train", *sys.argv[1:]])
