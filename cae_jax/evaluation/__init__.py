"""Quality of models; exports nothing, import `quality`, `comparison`, `intervals`, `baselines`."""
