import sys

from cae_jax.__main__ import main

main(["benchmark", *sys.argv[1:]])
