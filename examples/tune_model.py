"""Tune the convolutions of a model and save the plan that an application starts from.

    python examples/tune_model.py model.onnx --threads 2 --seconds 120 --plan model.plan

The model may also be a built-in network's name. Run it again to continue the search.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastrun import Budget, Database, fast_run, load
from fastrun.graph.networks import network_problems
from fastrun.tuner.measure.measurer import Measurer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--plan", type=Path, default="model.plan")
    parser.add_argument("--db", help="default: the one in the cache folder")
    options = parser.parse_args()

    problems = [(problem, count) for problem, count, _ in network_problems(options.model)]
    with Database(options.db) as database:
        measurer = Measurer(options.threads)
        summary = fast_run(problems, database, Budget(options.seconds), measurer=measurer)
        tuned = load(options.model, options.threads, database)
    for search in summary.searches:
        if search.incumbent:
            print(f"{search.problem}: {search.incumbent.schedule}")

    untuned = load(options.model, options.threads, policy="heuristic")
    # Interleaved, so that a disturbance affects both.
    rounds = [(untuned.seconds(5) / 5, tuned.seconds(5) / 5) for _ in range(10)]
    before, after = map(min, zip(*rounds, strict=True))
    print(f"{summary.trials} trials; {1e3 * before:.3f} ms by heuristics, {1e3 * after:.3f} tuned")
    tuned.plan.save(options.plan)
    print(f"plan: {options.plan}")


if __name__ == "__main__":
    main()
