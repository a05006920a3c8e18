"""Chooses the element types of a network's layers: the fastest within a loss of accuracy."""
