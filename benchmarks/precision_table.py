"""Tables and files of `precision`: a row for each network and engine, times beside accuracy."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fastrun.benchmarks import ours, peers
from fastrun.benchmarks.accuracy.score import Score
from fastrun.benchmarks.peers import low
from fastrun.benchmarks.peers.low.openvino import LIMIT
from fastrun.benchmarks.report import EngineRace, race_rows, read_races
from fastrun.kernels.core.whole_file import write_whole
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.units import UNKNOWN, ms, plural, ratio
from fastrun.tuner.terminal.display import grid, screen

OWN_INT8 = "ours-int8"
"""fastrun on the quantised file of `ort-u8s8`."""

OWN_QUANTISED = "ours-own"
"""fastrun on the file of its own quantiser, with weights of 8 bits."""

SCORE_HEADS = (
    *("right>", "95 %\ninterval>", "only wrong\nhere / f32>", "p>"),
    *("SQNR\ndB>", "agreement\nwith f32>"),
)
"""The heads of the columns of `score_texts`."""

ENGINES = (ours.NAME, OWN_INT8, OWN_QUANTISED, *peers.NAMES, *low.VARIANTS)


@dataclass(frozen=True)
class Comparison:
    """Races of engines, and their scores by network and engine."""

    races: Sequence[EngineRace]
    scores: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)

    @property
    def networks(self) -> list[str]:
        """The names of the networks, in order."""
        return list(dict.fromkeys([*(h.subject for h in self.races), *self.scores]))

    @property
    def threads(self) -> list[int]:
        """The numbers of threads."""
        return sorted({h.threads for h in self.races})

    def engines(self, network: str) -> list[str]:
        """The engines that were timed, scored or refused on a network, in a fixed order."""
        raced = {x.engine for h in self.races if h.subject == network for x in h.entries}
        present = raced | set(self.scores.get(network, {}))
        return [name for name in ENGINES if name in present]

    def seconds(self, network: str, engine: str, threads: int) -> float:
        """Seconds per call; infinite if not timed."""
        found = [h for h in self.races if (h.subject, h.threads) == (network, threads)]
        return found[0].seconds(engine) if found else math.inf

    def over_f32(self, network: str, engine: str, threads: int) -> float:
        """How many times faster than fastrun in float32; NaN if either was not timed."""
        own = self.seconds(network, ours.NAME, threads)
        quotient = own / self.seconds(network, engine, threads)
        return quotient if 0 < quotient < math.inf else math.nan

    def score(self, network: str, engine: str) -> Score:
        """The score of an engine; an empty one if none was counted."""
        return self.scores.get(network, {}).get(engine, Score())

    def fastest(self, network: str, threads: int) -> str:
        """The fastest variant of another engine in low precision, '' if none was timed."""
        timed = {e: self.seconds(network, e, threads) for e in low.VARIANTS}
        best = min(timed, key=lambda e: timed[e])
        return best if timed[best] < math.inf else ""

    def note(self, network: str, engine: str) -> str:
        """Why an engine was not timed, '' if it was."""
        entries = (x for h in self.races if h.subject == network for x in h.entries)
        return next((x.note for x in entries if x.engine == engine), "")

    def updated(self, later: Comparison) -> Comparison:
        """With the results of a later run, which replace those of the same network."""
        kept = {(h.subject, h.threads): h for h in [*self.races, *later.races]}
        scores = {n: dict(s) for n, s in self.scores.items()}
        for network, found in later.scores.items():
            scores.setdefault(network, {}).update(found)
        return Comparison(list(kept.values()), scores)


def frame(found: Comparison) -> pd.DataFrame:
    """A row for each network, engine and number of threads.

    Columns `network`, `engine`, `threads`, `seconds` per call, `over_f32` (how many times faster
    than fastrun in float32), `accuracy` with `low` and `high` (its 95 % interval), `labelled`
    (samples with known answers), `only_wrong`, `only_right`, `p` (against float32, see `Score`),
    `sqnr` (decibels) and `agreement`. What was not measured is missing (NaN).
    """
    rows = []
    for network in found.networks:
        for engine in found.engines(network):
            score = found.score(network, engine)
            counted = score.positions > 0
            low_end, high_end = score.interval
            for threads in found.threads or [1]:
                seconds = found.seconds(network, engine, threads)
                rows.append(
                    {
                        "network": network,
                        "engine": engine,
                        "threads": threads,
                        "seconds": seconds if seconds < math.inf else math.nan,
                        "over_f32": found.over_f32(network, engine, threads),
                        "accuracy": score.accuracy,
                        "low": low_end,
                        "high": high_end,
                        "labelled": score.labelled,
                        "only_wrong": score.only_wrong,
                        "only_right": score.only_right,
                        "p": score.p_value,
                        "sqnr": score.sqnr if counted else math.nan,
                        "agreement": score.agreement,
                    }
                )
    return pd.DataFrame(rows)


def summary(found: Comparison) -> list[list[str]]:
    """For each network and number of threads: fastrun, and the fastest of the other engines.

    The first row has the heads. A quality is the share of right answers; where none are known, the
    signal to noise ratio. An engine of fastrun that ran nowhere has no column.
    """
    every = [(n, t) for n in found.networks for t in found.threads]
    titles = {ours.NAME: "ours f32", OWN_INT8: "ours int8", OWN_QUANTISED: "own quantiser"}
    own = [e for e in titles if any(found.seconds(n, e, t) < math.inf for n, t in every)]
    heads = [titles[e] for e in own]
    times = [f"{head}, ms" for head in heads]
    rows = [["network", *times, "fastest peer, ms", "that over ours", *heads, "that peer"]]
    for network, threads in every:
        peer = found.fastest(network, threads)
        other = found.seconds(network, peer, threads)
        seconds = [found.seconds(network, engine, threads) for engine in own]
        name = network if threads == 1 else f"{network}, {plural(threads, 'thread')}"
        gain = ratio(other / min(seconds) if other < math.inf else math.nan)
        qualities = [_quality(found.score(network, engine)) for engine in (*own, peer)]
        rows.append([name, *map(ms, seconds), f"{ms(other)} {peer}".rstrip(), gain, *qualities])
    return rows


def _quality(score: Score) -> str:
    if score.labelled:
        return f"{100 * score.accuracy:.1f} % of {score.labelled}"
    if not score.positions:
        return UNKNOWN
    return f"{score.sqnr:.0f} dB" if score.sqnr < math.inf else "exact"


def show(found: Comparison, networks: Sequence[str]) -> None:
    """Print a table for each of these networks, and what could not be timed."""
    for network in networks:
        print(f"\n{network}")
        rows = text_rows(found, network)
        grid(screen(), rows[0], rows[1:])
        for engine in found.engines(network):
            if note := found.note(network, engine):
                print(f"{engine}: not timed: {note}")


def text_rows(found: Comparison, network: str) -> list[list[str]]:
    """The table of a network as texts; the first row has the heads."""
    times = [f"{plural(n, 'thread')}\nms>" for n in found.threads]
    gains = [f"over\nours f32, {n}>" for n in found.threads]
    rows = [["engine", *times, *gains, *SCORE_HEADS]]
    for engine in found.engines(network):
        seconds = [found.seconds(network, engine, n) for n in found.threads]
        row = [engine, *map(ms, seconds)]
        row += [ratio(found.over_f32(network, engine, n)) for n in found.threads]
        rows.append(row + score_texts(found.score(network, engine)))
    return rows


def score_texts(score: Score) -> list[str]:
    """The columns of a score in a table: see `text_rows`."""
    answers = [UNKNOWN] * 4
    if score.labelled:
        low_end, high_end = score.interval
        answers = [
            f"{100 * score.accuracy:.1f} % of {score.labelled}",
            f"{100 * low_end:.1f} to {100 * high_end:.1f}",
            f"{score.only_wrong} / {score.only_right}",
            f"{score.p_value:.2g}",
        ]
    if not score.positions:
        return [*answers, UNKNOWN, UNKNOWN]
    return [*answers, f"{score.sqnr:.1f}", f"{100 * score.agreement:.1f} %"]


def write_json(path: Path, found: Comparison) -> None:
    """Write all samples of times and all counts of scores."""
    scores = [
        {"subject": network, "engine": engine, **asdict(score)}
        for network, by_engine in found.scores.items()
        for engine, score in by_engine.items()
    ]
    data: dict[str, Any] = {
        "environment": Environment.host().to_dict(),
        "machine": asdict(probe()),
        "limit": os.environ.get(LIMIT, ""),
        "packages": _versions(found),
        "results": race_rows(found.races),
        "scores": scores,
    }
    write_whole(path, json.dumps(data, indent=1) + "\n")


def read_json(path: Path) -> Comparison:
    """What `write_json` wrote.

    Raises:
        OSError: the file cannot be read.
        KeyError, ValueError: it is no such file.
    """
    data = json.loads(path.read_text())
    scores: dict[str, dict[str, Score]] = {}
    for row in data["scores"]:
        counts = {k: v for k, v in row.items() if k not in ("subject", "engine")}
        scores.setdefault(row["subject"], {})[row["engine"]] = Score(**counts)
    return Comparison(read_races(data), scores)


def _versions(found: Comparison) -> dict[str, str]:
    """The version of every package that an engine uses."""
    names = dict.fromkeys(e for network in found.networks for e in found.engines(network))
    packages: list[str] = []
    for name in names:
        if name in peers.NAMES:
            packages += peers.engine(name).packages
        elif name in low.VARIANTS:
            packages += low.VARIANTS[name].packages
    return {p: importlib.metadata.version(p) for p in dict.fromkeys(packages)}
