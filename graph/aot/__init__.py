"""Ahead of time: a network as a library of machine code that needs no Python."""
