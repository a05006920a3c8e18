"""Run Kernel Tuner's strategies on open data: its simulation mode replays a T4 file.

    python examples/kernel_tuner_simulation.py results/open-data/im2col-resnet-14x14.json.gz

Needs `pip install kernel-tuner`, whose documentation lists the strategies.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from kernel_tuner import tune_kernel

from fastrun.tuner.records.record import Record
from fastrun.tuner.store import exchange


def cache_of(records: list[Record]) -> dict[str, Any]:
    """Kernel Tuner's cache of the records: times in milliseconds, failures by their kind."""
    names, entries = list(records[0].parameters), {}
    for r in records:
        entry = {**r.parameters, "timestamp": r.time, "compile_time": 1e3 * r.seconds["compile"]}
        entry |= {"verification_time": 1e3 * r.seconds.get("verify", 0.0)}
        entry |= {"benchmark_time": 1e3 * r.seconds.get("measure", 0.0)}
        failed = {"time": "RuntimeFailedConfig", "__error__": "RuntimeFailedConfig"}
        entry |= {"time": 1e3 * r.seconds_per_call} if r.samples else failed
        entries[",".join(map(str, r.parameters.values()))] = entry
    values = {name: list({r.parameters[name]: None for r in records}) for name in names}
    about = {"device_name": records[0].machine, "kernel_name": records[0].algorithm}
    about |= {"problem_size": [1], "tune_params_keys": names, "tune_params": values}
    return about | {"objective": "time", "cache": entries}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--strategy", default="genetic_algorithm")
    parser.add_argument("--evaluations", type=int, help="limit of schedules")
    options = parser.parse_args()
    cache = cache_of(exchange.read(options.file)[0])

    def measured(*values: Any, **named: Any) -> bool:
        return ",".join(map(str, values or named.values())) in cache["cache"]

    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(cache, indent=0))
        file.flush()
        found, _ = tune_kernel(
            cache["kernel_name"], "", 1, [], cache["tune_params"], restrictions=measured, lang="C",
            cache=file.name, simulation_mode=True, quiet=True, strategy=options.strategy,
            strategy_options={"max_fevals": options.evaluations} if options.evaluations else {},
        )  # fmt: skip
    best = min(r["time"] for r in found if "__error__" not in r)
    optimum = min(r["time"] for r in cache["cache"].values() if "__error__" not in r)
    tried = {tuple(r[name] for name in cache["tune_params_keys"]) for r in found}
    print(f"{options.strategy}: {len(tried)} schedules tried, best {best:.4f} ms")
    print(f"{best / optimum:.3f} times the optimum of the {len(cache['cache'])} schedules measured")
