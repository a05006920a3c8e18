"""What benchmarks of layers and of networks share: tables of ratios, JSON."""

from __future__ import annotations

import functools
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastrun.benchmarks import ours, peers
from fastrun.benchmarks.race import LOOSE, Lap
from fastrun.tuner.machine.noise import others
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.record import Errors
from fastrun.tuner.records.units import UNKNOWN, duration, ms, plural, ratio
from fastrun.tuner.terminal.display import grid, screen

ENGINES = (ours.NAME, *peers.NAMES)

_LONG = 1e-3  # seconds a subject takes at least for its scaling to count


@dataclass(frozen=True)
class Heat:
    """One subject (a layer or a network) on so many threads: a lap for every engine."""

    subject: str
    group: str
    threads: int
    laps: tuple[Lap, ...]

    def seconds(self, engine: str) -> float:
        """Seconds per call; infinite for who was not timed."""
        return next((x.seconds for x in self.laps if x.engine == engine), math.inf)

    @property
    def best_peer(self) -> str:
        """The fastest engine that is not ours, '' if there is none."""
        timed = [x for x in self.laps if x.samples and x.engine != ours.NAME]
        return min(timed, key=lambda x: x.seconds).engine if timed else ""

    @property
    def over_best(self) -> float:
        """How many times faster we are than the best peer; NaN if either is missing."""
        return self.over(self.best_peer)

    def over(self, engine: str) -> float:
        """How many times faster we are than an engine; NaN if either is missing."""
        quotient = self.seconds(engine) / self.seconds(ours.NAME)
        return quotient if 0 < quotient < math.inf else math.nan


def usable(engines: Iterable[str]) -> list[str]:
    """The peers among these engines that are installed; says which are not."""
    found = []
    for name in engines:
        reason = None if name == ours.NAME else peers.engine(name).available()
        if reason:
            notice(f"{name} is left out: {reason}")
        elif name != ours.NAME:
            found.append(name)
    return found


def introduce(engines: Sequence[str], overhead: Mapping[str, float]) -> None:
    """Print what is compared, where, and what a call of each peer costs."""
    environment = Environment.host()
    print(f"{environment.model}, {environment.cores} cores, {environment.toolchain}")
    for name in engines:
        taken = f"; {duration(overhead[name])} taken off a call" if name in overhead else ""
        print(f"{name}: {peers.engine(name).title} {peers.engine(name).version()}{taken}")
    if warning := others():
        notice(warning)


def notice(text: str) -> None:
    """A line that is not part of the results."""
    print(text, file=sys.stderr, flush=True)


def times_table(
    heats: Sequence[Heat], more: dict[str, Callable[[Heat], str]] | None = None
) -> None:
    """Milliseconds per engine (~: loose results) and the best peer; how we compare, `more`."""
    engines = _engines(heats)
    columns: dict[str, Callable[[Heat], str]] = {"": lambda h: h.subject}
    for name in engines:
        columns[f"{name}\nms>"] = functools.partial(_milliseconds, name)
    columns["best\npeer"] = lambda h: h.best_peer or UNKNOWN
    if ours.NAME in engines:
        columns["ours is\nfaster>"] = lambda h: ratio(h.over_best)
        columns |= more or {}
    rows = [[column(h) for column in columns.values()] for h in heats]
    grid(screen(), list(columns), rows)


def means_table(heats: Sequence[Heat]) -> None:
    """Geometric means of how many times faster we are, per group and over all."""
    engines = [e for e in _engines(heats) if e != ours.NAME]
    if not any(h.over_best > 0 for h in heats):
        return
    groups = list(dict.fromkeys(h.group for h in heats))
    rows = []
    for group in [*groups, "all"] if len(groups) > 1 else ["all"]:
        members = [h for h in heats if group in (h.group, "all")]
        ratios = [geometric_mean(h.over_best for h in members)]
        ratios += [geometric_mean(h.over(e) for h in members) for e in engines]
        rows.append([group, str(len(members)), *map(ratio, ratios)])
    heads = ["geometric\nmeans", "n>", "over best\npeer>", *(f"over\n{e}>" for e in engines)]
    grid(screen(), heads, rows)


def scaling_table(heats: Sequence[Heat]) -> None:
    """How many times faster each engine is on several threads than on one; long subjects only."""
    alone = {h.subject: h for h in heats if h.threads == 1}
    engines = _engines(heats)
    rows = []
    for threads in sorted({h.threads for h in heats} - {1} if alone else ()):
        pairs = [(alone[h.subject], h) for h in heats if h.threads == threads]
        gains = [[a.seconds(e) / b.seconds(e) for a, b in pairs if _long(a, e)] for e in engines]
        rows.append([str(threads), *(ratio(geometric_mean(g)) for g in gains)])
    if rows:
        grid(screen(), ["faster than\n1 thread", *(f"{e}>" for e in engines)], rows)


def remarks(heats: Sequence[Heat]) -> None:
    """Print who was not timed and why, and whose results are loose."""
    for heat in heats:
        for lap in heat.laps:
            where = f"{heat.subject}, {plural(heat.threads, 'thread')}, {lap.engine}"
            if not lap.samples:
                print(f"{where}: not timed: {lap.note}")
            elif lap.errors and lap.errors.rms > LOOSE:
                print(f"{where}: rms error {lap.errors.rms:.1e} of the output's rms")


def write_json(path: Path, heats: Sequence[Heat]) -> None:
    """Write everything that was measured: raw samples in seconds per call, overhead included."""
    engines = [e for e in _engines(heats) if e != ours.NAME]
    results = [
        {
            "subject": heat.subject,
            "group": heat.group,
            "threads": heat.threads,
            "engine": lap.engine,
            "seconds": _finite(lap.seconds),
            "overhead": lap.overhead,
            "repeats": lap.repeats,
            "samples": lap.samples,
            "errors": lap.errors and lap.errors.to_dict(),
            "note": lap.note,
        }
        for heat in heats
        for lap in heat.laps
    ]
    data: dict[str, Any] = {
        "environment": Environment.host().to_dict(),
        "machine": asdict(probe()),
        "engines": {e: peers.engine(e).version() for e in engines},
        "results": results,
    }
    path.write_text(json.dumps(data, indent=1) + "\n")


def read_heats(data: Mapping[str, Any]) -> list[Heat]:
    """The heats of a file that `write_json` wrote, as it was parsed.

    Raises:
        KeyError: something is missing: it is no such file.
    """
    laps: dict[tuple[str, str, int], list[Lap]] = {}
    for r in data["results"]:
        lap = Lap(
            engine=r["engine"],
            samples=tuple(r["samples"]),
            repeats=r["repeats"],
            errors=r["errors"] and Errors.from_dict(r["errors"]),
            overhead=r["overhead"],
            note=r["note"],
        )
        laps.setdefault((r["subject"], r["group"], r["threads"]), []).append(lap)
    return [Heat(*key, tuple(members)) for key, members in laps.items()]


def geometric_mean(values: Iterable[float]) -> float:
    """NaN and infinite values are left out; NaN if none is left."""
    finite = [v for v in values if math.isfinite(v)]
    return statistics.geometric_mean(finite) if finite else math.nan


def _milliseconds(engine: str, heat: Heat) -> str:
    lap = next((x for x in heat.laps if x.engine == engine), None)
    loose = lap is not None and lap.errors is not None and lap.errors.rms > LOOSE
    return ms(heat.seconds(engine)) + "~" * loose


def _engines(heats: Sequence[Heat]) -> list[str]:
    """The engines that took part, in a fixed order."""
    present = {lap.engine for heat in heats for lap in heat.laps}
    return [name for name in ENGINES if name in present]


def _long(heat: Heat, engine: str) -> bool:
    return _LONG < heat.seconds(engine) < math.inf


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
