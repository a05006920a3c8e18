"""One run of a network as a trace that chrome://tracing and ui.perfetto.dev open.

The format is Google's "Trace Event Format": complete events (`ph` X) with times in microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastrun.kernels.core.layout import Layout
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.core.types import Types
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.machine.probe import MachineReport

_PROCESS = 1


def trace(
    rows: Sequence[Mapping[str, Any]], title: str, machine: MachineReport | None
) -> dict[str, Any]:
    """The trace of the rows of `Executable.timeline`.

    Every thread is a track: what it computed, and where it waited for the others. The arguments of
    an event name algorithm, layouts, tensor and bytes; of products also GFLOP/s (of the direct
    method, by all threads) and, if the `machine` was measured, the share of its peak.
    """
    threads = 1 + max((row["thread"] for row in rows), default=0)
    told = {i: _facts(own, threads, machine) for i, own in _by_step(rows).items()}
    names = [_named("process_name", 0, title)]
    names += [_named("thread_name", i, f"thread {i}") for i in range(threads)]
    return {"displayTimeUnit": "ms", "traceEvents": [*names, *_events(rows, told)]}


def _by_step(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["step"], []).append(row)
    return found


def _facts(
    rows: Sequence[Mapping[str, Any]], threads: int, machine: MachineReport | None
) -> dict[str, Any]:
    """What is told of a step: `rows` are those of all its threads and stages."""
    step = rows[0]
    start = min(row["start"] for row in rows)
    seconds = max(row["start"] + row["working"] for row in rows) - start
    facts = {key: step[key] for key in ("work", "algorithm", "layouts", "output") if step[key]}
    if step["nbytes"]:
        facts["bytes"] = step["nbytes"]
    if step["flops"] and seconds > 0:
        rate = step["flops"] / seconds
        facts["GFLOP/s"] = round(rate / 1e9, 1)
        if machine:
            peak = machine.peak_of(threads, _products(step))
            facts["share of peak"] = f"{rate / peak:.0%}"
    return facts


def _products(step: Mapping[str, Any]) -> str:
    """The kind of products of a step's schedule, "" for any other kernel."""
    try:
        template, schedule = parse_schedule(step["algorithm"])
    except ScheduleError:
        return ""
    src = Layout.parse(re.split("[,>]", step["layouts"])[0])
    return template.products(Types(src=src.dtype), schedule)


def _events(
    rows: Sequence[Mapping[str, Any]], told: Mapping[int, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    for row in rows:
        name = row["name"] or row["work"]
        if row["work"] == "reorder":
            name = f"reorder {name}"
        facts = told[row["step"]]
        yield _span(row, name, row["work"], row["start"], row["working"], facts)
        if row["waiting"] > 0:
            end = row["start"] + row["working"]
            yield _span(row, "waiting", "waiting", end, row["waiting"], {"behind": name})
        if row["thread"] == 0 and "GFLOP/s" in facts:
            at = _microseconds(row["start"])
            counted = {"GFLOP/s": facts["GFLOP/s"]}
            yield {"ph": "C", "pid": _PROCESS, "name": "rate", "ts": at, "args": counted}


def _span(
    row: Mapping[str, Any], name: str, kind: str, start: float, seconds: float, args: dict[str, Any]
) -> dict[str, Any]:
    place = {"ph": "X", "pid": _PROCESS, "tid": row["thread"], "name": name, "cat": kind}
    return place | {"ts": _microseconds(start), "dur": _microseconds(seconds), "args": args}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": _PROCESS, "tid": thread, "name": what, "args": {"name": name}}
