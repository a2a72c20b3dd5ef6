"""Exchange with other frameworks; exports nothing, import `export`, `onnx` or `keras`."""
