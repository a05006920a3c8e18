"""Tune the convolutions of a model and save the plan that an application starts from.

    python examples/tune_model.py model.onnx --threads 2 --seconds 120 --plan model.plan

The model may also be a built-in network's name. Run it again to continue the search.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fastrun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--trials", type=int, help="at most, of each layer")
    parser.add_argument("--plan", type=Path, default="model.plan")
    parser.add_argument("--db", help="default: the one in the cache folder")
    options = parser.parse_args()

    budget = fastrun.Budget(options.seconds, options.trials)
    with fastrun.Database(options.db) as database:
        found = fastrun.tune(options.model, database, budget, threads=options.threads)
        tuned = fastrun.load(options.model, options.threads, database)
    for layer in found.standings:
        if layer.best:
            print(f"{layer.problem}: {layer.best.schedule}")

    untuned = fastrun.load(options.model, options.threads, policy="heuristic")
    # Interleaved, so that a disturbance affects both.
    rounds = [(untuned.seconds(5) / 5, tuned.seconds(5) / 5) for _ in range(10)]
    before, after = map(min, zip(*rounds, strict=True))
    trials = found.search.trials
    print(f"{trials} trials; {1e3 * before:.3f} ms by heuristics, {1e3 * after:.3f} ms tuned")
    tuned.plan.save(options.plan)
    print(f"plan: {options.plan}")


if __name__ == "__main__":
    main()
