import sys

from cae_jax.__main__ import main

main(["export", *sys.argv[1:]])
