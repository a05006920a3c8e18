"""Records as pandas tables, for notebooks and reports."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fastrun.kernels.core.attention import AttentionProblem, Problem
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.precision.kept import Front
from fastrun.tuner.records.record import Outcome, Record
from fastrun.tuner.store.standing import Standing, seconds


def best_frame(found: Sequence[Standing], peak: float = math.nan) -> pd.DataFrame:
    """A row for each problem: times of the naive loop, the heuristic and the best schedule.

    `naive`, `heuristic` and `best` are seconds per call. `low` to `high` is the 95 % interval of
    the speed-up over the heuristic, `low_runner_up` to `high_runner_up` that over the next best
    schedule (a little too high, because the best was chosen for being so). `p10` and `p90` are
    percentiles of the best schedule's samples. `share` is a share of `peak` (FLOP/s). `intensity`
    is in FLOP per byte if every tensor is moved once. Unknown numbers are NaN, an unknown winner
    is ''.
    """
    labels = layer_labels([s.problem for s in found])
    rows = [_best_row(s, label, peak) for s, label in zip(found, labels, strict=True)]
    return pd.DataFrame(rows, columns=_BEST_COLUMNS)


def convergence_frame(records: Iterable[Record]) -> pd.DataFrame:
    """The best time so far of every problem after each of its trials, in the order stored.

    Columns `problem`, `trial` (from 1) and `best` in seconds per call, which is NaN until a trial
    was correct. Baselines and races are left out.
    """
    best: dict[str, float] = {}
    trials = Counter[str]()
    rows = []
    for record in records:
        if not record.screened:
            continue
        problem = record.problem
        trials[problem] += 1
        if record.outcome == Outcome.CORRECT:
            best[problem] = min(best.get(problem, math.inf), record.seconds_per_call)
        rows.append((problem, trials[problem], best.get(problem, math.nan)))
    return pd.DataFrame(rows, columns=["problem", "trial", "best"])


def algorithms_frame(records: Iterable[Record]) -> pd.DataFrame:
    """The best schedule of each algorithm for each problem, in seconds per call, with baselines.

    `records` are decisive ones of `Database.ranking`.
    """
    best: dict[tuple[str, str], Record] = {}
    for record in records:
        key = record.problem, record.algorithm
        if key not in best or record.seconds_per_call < best[key].seconds_per_call:
            best[key] = record
    rows = [(*key, r.seconds_per_call, r.schedule, r.baseline) for key, r in best.items()]
    table = pd.DataFrame(rows, columns=["problem", "algorithm", "best", "schedule", "baseline"])
    return table.astype({"baseline": bool})


def pareto_frame(fronts: Mapping[Problem, Sequence[Record]]) -> pd.DataFrame:
    """The Pareto `front` of each problem: a row for each schedule, the fastest first.

    Columns `layer`, `problem`, `algorithm`, `schedule`, `seconds` per call, `slower` (over the
    fastest's), `workspace` in bytes, `error_rms` and `stage`.
    """
    rows = [
        {
            "layer": label,
            "problem": str(problem),
            "algorithm": r.algorithm,
            "schedule": r.schedule,
            "seconds": r.seconds_per_call,
            "slower": r.seconds_per_call / records[0].seconds_per_call,
            "workspace": r.workspace,
            "error_rms": r.errors.rms if r.errors else math.nan,
            "stage": str(r.stage),
        }
        for (problem, records), label in zip(
            fronts.items(), layer_labels(list(fronts)), strict=True
        )
        for r in records
    ]
    columns = ["layer", "problem", "algorithm", "schedule", "seconds", "slower", "workspace"]
    return pd.DataFrame(rows, columns=[*columns, "error_rms", "stage"])


def precision_frame(front: Front) -> pd.DataFrame:
    """The front of a network's precisions: plans as expected, then whole networks as measured.

    Columns `measured`, `seconds`, `error` (rms of the change of the outputs over their rms), and of
    what was measured `lost` (a share of the examples), `layers` in integers, `of` all that could
    be, and `chosen`. Expected plans have NaN and False there.
    """
    expected = [
        {"measured": False, "seconds": p["seconds"], "error": math.sqrt(p["loss"])}
        for p in front["expected"]
    ]
    whole = [
        {"measured": True, **{x: p[x] for x in _WHOLE}, "chosen": n == front["chosen"]}
        for n, p in enumerate(front["validated"])
    ]
    table = pd.DataFrame([*expected, *whole], columns=["measured", *_WHOLE, "chosen"])
    return table.assign(chosen=table["chosen"].eq(True))


_WHOLE = ("seconds", "error", "lost", "layers", "of")


def importance_frame(records: Iterable[Record], least: int = 20) -> pd.DataFrame:
    """The share of the variance of log time that each schedule field explains, by algorithm.

    Columns `algorithm`, `parameter`, `importance`, `trials`, `problems`. The share is omega squared
    of a one-way analysis of variance (Hays, 1963). It is zero for mere chance; negative values
    become zero. Interactions of parameters do not appear. It is a mean over the problems with at
    least `least` correct trials of the algorithm, weighted by trials.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        if r.outcome == Outcome.CORRECT and r.screened:
            groups.setdefault((r.algorithm, r.problem), []).append(r)
    shares: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for (algorithm, _), measured in groups.items():
        if len(measured) >= least:
            times = pd.Series([math.log(r.seconds_per_call) for r in measured])
            fields = pd.DataFrame([r.parameters for r in measured])
            for name in fields:
                share = _explained(times, fields[name])
                shares.setdefault((algorithm, str(name)), []).append((share, len(measured)))
    rows = []
    for key, parts in shares.items():
        trials = sum(count for _, count in parts)
        rows.append((*key, sum(s * count for s, count in parts) / trials, trials, len(parts)))
    columns = ["algorithm", "parameter", "importance", "trials", "problems"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        ["trials", "algorithm", "importance"], ascending=False, ignore_index=True
    )


def _explained(values: pd.Series, by: pd.Series) -> float:
    """Omega squared, at least 0. It is 0 if there is one group, or no variance inside groups."""
    groups = values.groupby(by.to_numpy())
    between = float((groups.transform("mean") - values.mean()).pow(2).sum())
    total = float((values - values.mean()).pow(2).sum())
    freedom = len(values) - groups.ngroups
    if groups.ngroups < 2 or freedom < 1 or total <= 0:
        return 0.0
    chance = (total - between) / freedom
    return max(0.0, (between - (groups.ngroups - 1) * chance) / (total + chance))


def outcomes_frame(records: Iterable[Record]) -> pd.DataFrame:
    """The numbers of failed trials by outcome and reason, descending; # replaces numbers."""
    counts = Counter(
        (str(r.outcome), re.sub(r"\d[\d.e+-]*", "#", r.reason))
        for r in records
        if r.outcome != Outcome.CORRECT
    )
    rows = [(*key, count) for key, count in counts.most_common()]
    return pd.DataFrame(rows, columns=["outcome", "reason", "count"])


def rows(table: pd.DataFrame) -> list[Any]:
    """The rows of a table, whose columns become attributes."""
    return list(table.itertuples(index=False))


def layer_labels(problems: Sequence[Problem]) -> list[str]:
    """A short name for each problem, different from all other names: `3x3 64→128 @56 /2`.

    Attention of 197 queries and keys in 12 heads of 64 numbers is `attention 12x64 @197`.
    """
    labels: list[str] = []
    for p in problems:
        label = _attention_label(p) if isinstance(p, AttentionProblem) else _label(p)
        number = 1 + sum(other.partition(" (")[0] == label for other in labels)
        labels.append(label if number == 1 else f"{label} ({number})")
    return labels


def _attention_label(p: AttentionProblem) -> str:
    keys = f"x{p.keys}" if p.add else ""
    return f"attention {p.heads}x{p.size} @{p.queries}{keys}{' mask' * p.mask}"


def _label(p: ConvProblem) -> str:
    words = [f"{p.kernel[0]}x{p.kernel[1]}", f"{p.c}→{p.oc}", f"@{p.h}"]
    if p.groups == p.c == p.oc:
        words[:2] = [f"dw {words[0]}", str(p.c)]
    elif p.groups > 1:
        words.append(f"g{p.groups}")
    if p.w != p.h:
        words[2] += f"x{p.w}"
    if p.stride != (1, 1):
        words.append(f"/{max(p.stride)}")
    words += ["+add"] if p.add else []
    return " ".join(words)


def _best_row(s: Standing, label: str, peak: float) -> dict[str, Any]:
    p, best = s.problem, s.best
    samples = best.samples if best else (math.nan,)
    moved = F32.bytes(sum(p.sizes))
    return {
        "layer": label,
        "problem": str(p),
        "count": s.count,
        "naive": seconds(s.naive),
        "heuristic": seconds(s.heuristic),
        "best": seconds(best),
        "p10": float(np.percentile(samples, 10)),
        "p90": float(np.percentile(samples, 90)),
        "speedup_naive": s.over_naive,
        "speedup_heuristic": s.over_heuristic,
        "low": s.interval[0],
        "high": s.interval[1],
        "runner_up": s.runner_up.schedule if s.runner_up else "",
        "low_runner_up": s.over_runner_up[0],
        "high_runner_up": s.over_runner_up[1],
        "verdict": s.verdict,
        "flops": p.flops,
        "gflops": s.gflops,
        "share": s.gflops * 1e9 / peak,
        "heuristic_share": p.flops / seconds(s.heuristic) / peak,
        "intensity": p.flops / moved,
        "algorithm": best.algorithm if best else "",
        "winner": best.schedule if best else "",
        "heuristic_schedule": s.heuristic.schedule if s.heuristic else "",
        "error_max": best.errors.max if best and best.errors else math.nan,
        "workspace": best.workspace if best else math.nan,
        "stage": str(best.stage) if best else "",
        "samples": len(best.samples) if best else 0,
    }


_BEST_COLUMNS = [
    *("layer", "problem", "count", "naive", "heuristic", "best", "p10", "p90"),
    *("speedup_naive", "speedup_heuristic", "low", "high", "runner_up", "low_runner_up"),
    *("high_runner_up", "verdict", "flops", "gflops", "share"),
    *("heuristic_share", "intensity", "algorithm", "winner", "heuristic_schedule", "error_max"),
    *("workspace", "stage", "samples"),
]
