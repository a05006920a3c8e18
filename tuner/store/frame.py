"""Records as a pandas table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

import pandas as pd

from fastrun.kernels.core.attention import parse_problem
from fastrun.kernels.core.problem import ProblemError
from fastrun.tuner.records.record import Record


def frame(records: Iterable[Record], parameters: bool = False) -> pd.DataFrame:
    """A row for each record; times in seconds, throughput in GFLOP/s, missing values NaN.

    `min`, `median` and `seconds_per_call` are of the samples. `clock` is the median in MHz beside
    them, `temperature` the highest in degrees Celsius. Errors and costs of the trial have
    their own columns (`error_max`, `compile_seconds`). With `parameters`, every field of a schedule
    becomes a column (`layout`, `tile_h`; NaN where the algorithm has no such field).
    """
    rows = [_row(record, parameters) for record in records]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=_COLUMNS)
    table["time"] = pd.to_datetime(table["time"], format="ISO8601", utc=True)
    return table


_COLUMNS = [
    *("problem", "algorithm", "schedule", "machine", "threads", "regime", "stage", "outcome"),
    *("reason", "seconds_per_call", "min", "median", "samples", "gflops", "error_max"),
    *("error_rms", "error_bias", "workspace", "baseline", "heuristic", "ir_hash", "toolchain"),
    *("run", "time", "noise", "protocol", "clock", "temperature"),
]


def _flops(problem: str) -> float:
    """FLOP of one call; NaN if this version does not know the problem."""
    try:
        return parse_problem(problem).flops
    except ProblemError:
        return math.nan


def _row(record: Record, parameters: bool) -> dict[str, Any]:
    samples = record.samples or (math.nan,)
    seconds = record.seconds_per_call if record.samples else math.nan
    errors = record.errors
    measured = {
        "stage": str(record.stage),
        "outcome": str(record.outcome),
        "seconds_per_call": seconds,
        "min": min(samples),
        "median": statistics.median(samples),
        "samples": len(record.samples),
        "gflops": _flops(record.problem) / seconds / 1e9,
        "error_max": errors.max if errors else math.nan,
        "error_rms": errors.rms if errors else math.nan,
        "error_bias": errors.bias if errors else math.nan,
        "clock": statistics.median(record.clocks) if record.clocks else math.nan,
        "temperature": max(record.temperatures, default=math.nan),
    }
    row = {name: measured.get(name, getattr(record, name, None)) for name in _COLUMNS}
    row |= {f"{name}_seconds": cost for name, cost in record.seconds.items()}
    # A column wins over a field of the schedule with the same name.
    return (record.parameters | row) if parameters else row
