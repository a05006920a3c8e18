"""Run a built network: memory, packed weights, one native call per inference."""
