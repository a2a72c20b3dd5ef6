from cae_jax.cli.export_keras import main

main()
