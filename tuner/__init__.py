"""Measure, search, remember, report."""
