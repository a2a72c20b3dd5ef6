"""Networks; exports nothing, import `topology`, `autoencoders`, `inference` or `summary`."""
