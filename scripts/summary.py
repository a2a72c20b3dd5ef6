import sys

from cae_jax.__main__ import main

main(["summary", *sys.argv[1:]])
