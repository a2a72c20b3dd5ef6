from cae_jax.cli.evaluate import main

main()
