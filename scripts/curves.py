from cae_jax.cli.curves import main

main()
