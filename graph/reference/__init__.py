"""Evaluate a network in float64, the truth that everything else is compared with."""
