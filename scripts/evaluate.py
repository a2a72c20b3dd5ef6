import sys

from cae_jax.__main__ import main

main(["evaluate", *sys.argv[1:]])
