"""Decides how each task of a network runs: its possible forms, and the choice among them."""
