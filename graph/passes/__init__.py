"""Passes rewrite a graph into one that computes the same; `pipeline` has their order."""
