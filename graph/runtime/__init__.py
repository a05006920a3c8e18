"""Runs a built network: its memory, packed weights, and one native call per inference."""
