"""Training as pure functions; exports nothing, import `trainer`, `programs`, `step` and others."""
