from cae_jax.cli.train import main

main()
