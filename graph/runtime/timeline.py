"""When the steps of a network run on each thread: the data of profiles and timelines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.runtime.context import Context
from fastrun.graph.runtime.segments import Calculation, Native

# What a timeline tells of each step.
_TOLD = ("name", "work", "algorithm", "layouts", "output", "flops", "nbytes")


def thread_times(context: Context, repeats: int) -> NDArray[np.float64]:
    """Seconds of working and of waiting: (run, thread, step, 2)."""
    times = np.zeros((repeats, context.threads, len(context.steps), 2))
    for row in times:
        context.begin()
        for part in context.segments:
            for mine, seen in zip(row, _moments(context, part), strict=True):
                np.add.at(mine, part.owners, np.diff(seen).reshape(-1, 2))
    return times


def profile(context: Context, repeats: int) -> list[dict[str, Any]]:
    """The rows of `Executable.profile`."""
    times = thread_times(context, repeats)
    seconds, waiting = np.median(times.sum(axis=-1).mean(axis=1), axis=0), times[..., 1]
    working = times[..., 0]
    mean = working.mean(axis=1)
    imbalance = working.max(axis=1) / np.where(mean > 0, mean, 1)
    return [
        {
            "name": step.name,
            "work": step.work,
            "algorithm": step.algorithm,
            "layouts": step.layouts,
            "output": step.output,
            "seconds": float(seconds[i]),
            "share": float(seconds[i] / seconds.sum()),
            "expected": step.seconds,
            "waiting": float(np.median(waiting[..., i].mean(axis=1))),
            "imbalance": float(np.median(imbalance[:, i])),
        }
        for i, step in enumerate(context.steps)
    ]


def timeline(context: Context, repeats: int) -> list[dict[str, Any]]:
    """The rows of `Executable.timeline`."""
    runs: list[tuple[float, list[dict[str, Any]]]] = []
    for _ in range(repeats):
        rows, clock, stage = list[dict[str, Any]](), 0.0, 0
        context.begin()
        for part in context.segments:
            moments = _moments(context, part)
            for thread, seen in enumerate(moments + clock):
                for k, i in enumerate(part.owners):
                    begin, done, end = map(float, seen[2 * k : 2 * k + 3])
                    row = {key: getattr(context.steps[i], key) for key in _TOLD}
                    row |= {"thread": thread, "step": i, "stage": stage + k}
                    row |= {"start": begin, "working": done - begin, "waiting": end - done}
                    rows.append(row)
            clock, stage = clock + float(moments.max()), stage + len(part.owners)
        runs.append((clock, rows))
    return sorted(runs, key=lambda run: run[0])[len(runs) // 2][1]


def _moments(context: Context, part: Native | Calculation) -> NDArray[np.float64]:
    """Run a part once. Seconds from its start, a row for each thread.

    The first moment is the start; each stage has two, the end of its work and of its waiting.
    """
    threads = context.threads
    if isinstance(part, Calculation):
        found = np.full((threads, 3), [0.0, 0.0, part.run(context.values)])
        found[0, 1] = found[0, 2]  # one thread works, the others wait
        return found
    stamps = np.zeros((threads, len(part.owners), 2), np.int64)
    whole = context.team.run(part.script, stamps=stamps.ctypes.data, meet=True)
    # A run starts when all threads have met; no stamp marks that moment.
    start = stamps[0, -1, 1] - round(whole * 1e9)
    seen = np.maximum(stamps.reshape(threads, -1) - start, 0) * 1e-9
    return np.concatenate([np.zeros((threads, 1)), seen], axis=1)
