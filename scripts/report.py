import sys

from cae_jax.__main__ import main

main(["report", *sys.argv[1:]])
