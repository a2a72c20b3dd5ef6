from cae_jax.cli.summary import main

main()
