from cae_jax.cli.report import main

main()
