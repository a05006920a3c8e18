"""Whole networks: what to tune, measured choices, the final of whole plans, loading."""
