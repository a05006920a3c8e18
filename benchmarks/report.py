"""Common parts of the benchmarks of layers and of networks: tables of ratios, JSON."""

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
from fastrun.benchmarks.race import LOOSE, EntryTimes
from fastrun.kernels.core.whole_file import write_whole
from fastrun.tuner.machine.noise import others
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.record import Errors
from fastrun.tuner.records.units import UNKNOWN, duration, finite, ms, plural, ratio, size
from fastrun.tuner.terminal.display import grid, screen

ENGINES = (ours.NAME, *peers.NAMES)

_LONG = 1e-3  # seconds; scaling is shown for subjects that take longer on one thread


@dataclass(frozen=True)
class EngineRace:
    """A race of engines on one subject, a layer or a network, with an entry for each engine.

    `peak` are the FLOP/s of fused multiply-adds that each core did just before and after, with as
    many cores at once as there are threads.
    """

    subject: str
    group: str
    threads: int
    entries: tuple[EntryTimes, ...]
    peak: tuple[float, float] | None = None

    def seconds(self, engine: str) -> float:
        """Seconds per call; infinite if the engine was not timed."""
        return next((x.seconds for x in self.entries if x.engine == engine), math.inf)

    @property
    def best_peer(self) -> str:
        """The fastest engine besides fastrun, '' if there is none."""
        timed = [x for x in self.entries if x.samples and x.engine != ours.NAME]
        return min(timed, key=lambda x: x.seconds).engine if timed else ""

    @property
    def over_best(self) -> float:
        """The speed-up of fastrun over the best peer; NaN if either is missing."""
        return self.over(self.best_peer)

    def over(self, engine: str) -> float:
        """The speed-up of fastrun over an engine; NaN if either is missing."""
        quotient = self.seconds(engine) / self.seconds(ours.NAME)
        return quotient if 0 < quotient < math.inf else math.nan


def usable(engines: Iterable[str]) -> list[str]:
    """The installed peers among these engines; prints which are missing."""
    found = []
    for name in engines:
        reason = None if name == ours.NAME else peers.missing(name)
        if reason:
            notice(f"{name} is left out: {reason}")
        elif name != ours.NAME:
            found.append(name)
    return found


def introduce(engines: Sequence[str], overhead: Mapping[str, float]) -> None:
    """Print the machine, the engines, and the overhead of a call of each peer."""
    environment = Environment.host()
    print(f"{environment.model}, {environment.cores} cores, {environment.toolchain}")
    for name in engines:
        cost = f"; {duration(overhead[name])} subtracted per call" if name in overhead else ""
        print(f"{name}: {peers.engine(name).title} {peers.version(name)}{cost}")
    if warning := others():
        notice(warning)


def notice(text: str) -> None:
    """Print a line that is not part of the results."""
    print(text, file=sys.stderr, flush=True)


def times_table(
    races: Sequence[EngineRace], more: dict[str, Callable[[EngineRace], str]] | None = None
) -> None:
    """Print milliseconds per engine (~: loose results), the best peer, the speed-up, and `more`."""
    engines = _engines(races)
    columns: dict[str, Callable[[EngineRace], str]] = {"": lambda h: h.subject}
    for name in engines:
        columns[f"{name}\nms>"] = functools.partial(_milliseconds, name)
    columns["best\npeer"] = lambda h: h.best_peer or UNKNOWN
    if ours.NAME in engines:
        columns["ours is\nfaster>"] = lambda h: ratio(h.over_best)
        columns |= more or {}
    rows = [[column(h) for column in columns.values()] for h in races]
    grid(screen(), list(columns), rows)


def engines_table(races: Sequence[EngineRace]) -> None:
    """Print of every engine the error, the A/A ratio, the first run and the memory.

    If engines had several processes, also the times in each.
    """
    several = any(entry.processes > 1 for raced in races for entry in raced.entries)
    heads = [
        "",
        "engine",
        "rms\nerror>",
        "A/A\nratio>",
        *["processes,\nms"] * several,
        "load and\nfirst run>",
        "memory\ngrown by>",
    ]
    rows = [
        [
            raced.subject,
            entry.engine,
            f"{entry.errors.rms:.1e}" if entry.errors else UNKNOWN,
            f"{entry.against_itself:.3f}",
            *["/".join(map(ms, entry.by_process))] * several,
            duration(entry.start),
            size(entry.memory),
        ]
        for raced in races
        for entry in raced.entries
        if entry.samples
    ]
    grid(screen(), heads, rows)
    for raced in races:
        if raced.peak:
            known = probe().peak
            before, after = (f"{100 * peak / known:.0f} %" for peak in raced.peak)
            cores = "one core" if raced.threads == 1 else f"each of {raced.threads} cores at once"
            print(
                f"{raced.subject}: {cores} did {before} of a core's measured peak before the race, "
                f"{after} after it"
            )


def means_table(races: Sequence[EngineRace]) -> None:
    """Print geometric means of the speed-ups of fastrun, per group and over all."""
    engines = [e for e in _engines(races) if e != ours.NAME]
    if not any(h.over_best > 0 for h in races):
        return
    groups = list(dict.fromkeys(h.group for h in races))
    rows = []
    for group in [*groups, "all"] if len(groups) > 1 else ["all"]:
        members = [h for h in races if group in (h.group, "all")]
        ratios = [geometric_mean(h.over_best for h in members)]
        ratios += [geometric_mean(h.over(e) for h in members) for e in engines]
        rows.append([group, str(len(members)), *map(ratio, ratios)])
    heads = ["geometric\nmeans", "n>", "over best\npeer>", *(f"over\n{e}>" for e in engines)]
    grid(screen(), heads, rows)


def scaling_table(races: Sequence[EngineRace]) -> None:
    """Print each engine's speed-up on several threads over one, for long subjects."""
    alone = {h.subject: h for h in races if h.threads == 1}
    engines = _engines(races)
    rows = []
    for threads in sorted({h.threads for h in races} - {1} if alone else ()):
        pairs = [(alone[h.subject], h) for h in races if h.threads == threads]
        gains = [[a.seconds(e) / b.seconds(e) for a, b in pairs if _long(a, e)] for e in engines]
        rows.append([str(threads), *(ratio(geometric_mean(g)) for g in gains)])
    if rows:
        grid(screen(), ["faster than\n1 thread", *(f"{e}>" for e in engines)], rows)


def remarks(races: Sequence[EngineRace]) -> None:
    """Print the engines that were not timed, with reasons, and those with loose results."""
    for raced in races:
        for entry in raced.entries:
            where = f"{raced.subject}, {plural(raced.threads, 'thread')}, {entry.engine}"
            if not entry.samples:
                print(f"{where}: not timed: {entry.note}")
            elif entry.errors and entry.errors.rms > LOOSE:
                print(f"{where}: rms error {entry.errors.rms:.1e} of the output's rms")


def write_json(path: Path, races: Sequence[EngineRace]) -> None:
    """Write all measurements: raw samples in seconds per call, including the overhead."""
    engines = [e for e in _engines(races) if e != ours.NAME]
    data: dict[str, Any] = {
        "environment": Environment.host().to_dict(),
        "machine": asdict(probe()),
        "engines": {e: peers.version(e) for e in engines},
        "results": race_rows(races),
    }
    write_whole(path, json.dumps(data, indent=1) + "\n")


def race_rows(races: Sequence[EngineRace]) -> list[dict[str, Any]]:
    """The entries of all races in JSON form; `read_races` restores them."""
    return [
        {
            "subject": raced.subject,
            "group": raced.group,
            "threads": raced.threads,
            "engine": entry.engine,
            "seconds": finite(entry.seconds),
            "overhead": entry.overhead,
            "repeats": entry.repeats,
            "samples": entry.samples,
            "errors": entry.errors and entry.errors.to_dict(),
            "note": entry.note,
            "start": finite(entry.start),
            "memory": entry.memory,
            "processes": entry.processes,
            "peak": raced.peak,
        }
        for raced in races
        for entry in raced.entries
    ]


def read_races(data: Mapping[str, Any]) -> list[EngineRace]:
    """The races of a parsed file of `write_json`.

    Raises:
        KeyError: a part is missing: it is no such file.
    """
    entries: dict[tuple[str, str, int], list[EntryTimes]] = {}
    peaks: dict[tuple[str, str, int], tuple[float, float] | None] = {}
    for r in data["results"]:
        entry = EntryTimes(
            engine=r["engine"],
            samples=tuple(r["samples"]),
            repeats=r["repeats"],
            errors=r["errors"] and Errors.from_dict(r["errors"]),
            overhead=r["overhead"],
            note=r["note"],
            start=math.nan if r.get("start") is None else r["start"],
            memory=r.get("memory", 0),
            processes=r.get("processes", 1),
        )
        key = r["subject"], r["group"], r["threads"]
        entries.setdefault(key, []).append(entry)
        peaks[key] = tuple(r["peak"]) if r.get("peak") else None
    return [EngineRace(*key, tuple(members), peaks[key]) for key, members in entries.items()]


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of the finite values; NaN if there are none."""
    known = [v for v in values if math.isfinite(v)]
    return statistics.geometric_mean(known) if known else math.nan


def _milliseconds(engine: str, raced: EngineRace) -> str:
    entry = next((x for x in raced.entries if x.engine == engine), None)
    loose = entry is not None and entry.errors is not None and entry.errors.rms > LOOSE
    return ms(raced.seconds(engine)) + "~" * loose


def _engines(races: Sequence[EngineRace]) -> list[str]:
    """The engines of the races, in a fixed order."""
    present = {entry.engine for raced in races for entry in raced.entries}
    return [name for name in ENGINES if name in present]


def _long(raced: EngineRace, engine: str) -> bool:
    return _LONG < raced.seconds(engine) < math.inf
