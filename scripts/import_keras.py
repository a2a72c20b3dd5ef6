from cae_jax.cli.import_ import main

main()
