"""The article's experiments, repeatable: `python -m fastrun.benchmarks.experiments.NAME`."""
