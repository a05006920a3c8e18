"""Records as pandas tables, for notebooks and reports."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from kernels.core.problem import ConvProblem
from tuner.database import Database
from tuner.record import Record


def frame(records: Iterable[Record], parameters: bool = False) -> pd.DataFrame:
    """One row per record, times in seconds, throughput in GFLOP/s; missing values are NaN.

    `min`, `median` and `seconds_per_call` are of the samples; errors and trial costs have columns
    of their own (`error_max`, `compile_seconds`). With `parameters`, every schedule field that
    occurs becomes a column (`mr`, `layout`; NaN where the algorithm has no such field).
    """
    rows = [_row(record, parameters) for record in records]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=_COLUMNS)
    table["time"] = pd.to_datetime(table["time"], format="ISO8601", utc=True)
    return table


def best_frame(
    database: Database,
    problems: Mapping[ConvProblem, int] | Iterable[ConvProblem],
    machine: str,
    threads: int,
    regime: str,
) -> pd.DataFrame:
    """One row per problem: what the naive loop, the heuristic and the best schedule take.

    `problems` maps a problem to how often it occurs, or lists them with repetitions. `naive`,
    `heuristic` and `best` are seconds per call; `heuristic` is the fastest of the schedules that
    algorithms proposed unmeasured, so the speed-up over it is the least favourable one. Values
    that nobody measured are NaN, an unknown `winner` is ''.
    """
    rows = []
    for problem, count in Counter(problems).items():
        ranking = database.ranking(problem, machine, threads, regime, include_baselines=True)
        naive = _first(r for r in ranking if r.algorithm == "naive")
        heuristic = _first(r for r in ranking if r.heuristic and not r.baseline)
        winner = next((r for r in ranking if not r.baseline), None)
        best = winner.seconds_per_call if winner else math.nan
        rows.append(
            {
                "problem": str(problem),
                "count": count,
                "naive": naive,
                "heuristic": heuristic,
                "best": best,
                "speedup_naive": naive / best,
                "speedup_heuristic": heuristic / best,
                "gflops": problem.flops / best / 1e9,
                "winner": winner.schedule if winner else "",
            }
        )
    return pd.DataFrame(rows, columns=_BEST_COLUMNS)


_BEST_COLUMNS = [
    *("problem", "count", "naive", "heuristic", "best"),
    *("speedup_naive", "speedup_heuristic", "gflops", "winner"),
]

_COLUMNS = [
    *("problem", "algorithm", "schedule", "machine", "threads", "regime", "stage", "outcome"),
    *("reason", "seconds_per_call", "min", "median", "samples", "gflops", "error_max"),
    *("error_rms", "error_bias", "workspace", "baseline", "heuristic", "ir_hash", "toolchain"),
    *("run", "time"),
]


def _row(record: Record, parameters: bool) -> dict[str, Any]:
    samples = record.samples or (math.nan,)
    seconds = record.seconds_per_call if record.samples else math.nan
    errors = record.errors
    measured = {
        "outcome": str(record.outcome),
        "seconds_per_call": seconds,
        "min": min(samples),
        "median": statistics.median(samples),
        "samples": len(record.samples),
        "gflops": ConvProblem.parse(record.problem).flops / seconds / 1e9,
        "error_max": errors.max if errors else math.nan,
        "error_rms": errors.rms if errors else math.nan,
        "error_bias": errors.bias if errors else math.nan,
    }
    row = {name: measured.get(name, getattr(record, name, None)) for name in _COLUMNS}
    row |= {f"{name}_seconds": cost for name, cost in record.seconds.items()}
    # A schedule field that is named like a column does not hide it.
    return (record.parameters | row) if parameters else row


def _first(records: Iterable[Record]) -> float:
    return next((record.seconds_per_call for record in records), math.nan)
