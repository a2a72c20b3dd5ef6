from cae_jax.cli.export import main

main()
