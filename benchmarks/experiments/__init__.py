"""The article's experiments, repeatable: `python -m benchmarks.experiments.NAME`."""
