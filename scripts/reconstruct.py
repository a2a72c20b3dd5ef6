from cae_jax.cli.reconstruct import main

main()
