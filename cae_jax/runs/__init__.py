"""A run on disk; exports nothing, import `fit`, `population`, `load` and others."""
