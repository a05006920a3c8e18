"""Measurements on devices that have no Python: boards and phones."""
