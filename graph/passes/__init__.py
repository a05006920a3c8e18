"""Graph to graph: a pass a file, `pipeline` has their order."""
