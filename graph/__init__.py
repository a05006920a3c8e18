"""What to run: networks."""
