"""The times of a whole network: sums of its layers, plans raced as a whole, other engines.

A sum of layers adds convolutions that were timed alone. It lacks all other work, and the influence
of layers on each other's caches. Only plans raced as a whole are times of the network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fastrun.tuner.precision.kept import Front
from fastrun.tuner.records.network_record import HEURISTIC, NetworkRecord
from fastrun.tuner.records.record import RecordError
from fastrun.tuner.records.units import ms, plural, ratio
from fastrun.tuner.report.frames import rows
from fastrun.tuner.report.style import (
    COLOURS,
    FAINT,
    Figure,
    layer_canvas,
    legend,
    mark,
    note,
    plain_log,
)
from fastrun.tuner.store.standing import Standing, network_seconds

SUM, RACED, BENCH = "sum of layers", "timed in place", "fastrun bench"
"""The sources of times."""

BENCHED = "networks.json"
"""The file of `fastrun bench --json` that a report looks for in its folder."""

_OURS = "ours"  # the name of fastrun's entry in `fastrun bench`


@dataclass(frozen=True)
class NetworkTimes:
    """A network's layers, its newest final, its results of `fastrun bench`, its precisions."""

    name: str
    layers: Sequence[Standing]
    final: NetworkRecord | None
    benched: Sequence[Mapping[str, Any]]
    precision: Front | None

    @property
    def title(self) -> str:
        """The name without folders."""
        return Path(self.name).stem if Path(self.name).suffix == ".onnx" else self.name


def benched(folder: Path, machine: str, threads: int, name: str) -> list[Mapping[str, Any]]:
    """The results of a network in the `BENCHED` file of a folder; none of other machines.

    Raises:
        RecordError: it is no such file.
    """
    file = folder / BENCHED
    if not file.exists():
        return []
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["machine"]["machine"] != machine:
            return []
        subjects = name, Path(name).stem
        mine = [r for r in data["results"] if r["subject"] in subjects and r["threads"] == threads]
        return [r for r in mine if r["seconds"] is not None]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{file} is not what `fastrun bench --json` writes ({error}): move it away"
        ) from error


@dataclass(frozen=True)
class Beside:
    """Seconds of fastrun and of the fastest other engine in one run of `fastrun bench`."""

    ours: float
    engine: str
    theirs: float


def beside(network: NetworkTimes) -> Beside | None:
    """Fastrun and the best other engine, if both ran."""
    times = {str(r["engine"]): float(r["seconds"]) for r in network.benched}
    ours = times.pop(_OURS, None)
    if ours is None or not times:
        return None
    best = min(times, key=times.__getitem__)
    return Beside(ours, best, times[best])


def times_frame(networks: Sequence[NetworkTimes]) -> pd.DataFrame:
    """A row for each sum of layers, plan and engine.

    Columns `network`, `who` (what was timed), `seconds`, `over_heuristic` (speed-up over the
    heuristic's plan of the same race, else NaN) with its 95 % interval `low` to `high`, `source`
    (`SUM`, `RACED` or `BENCH`), `samples`, `kept` for the plan that won, and `over_peer`: the
    speed-up over the best other engine in the same run of `fastrun bench`, else NaN.
    """
    found = [{"network": n.title, **row} for n in networks for row in _rows_of(n)]
    return pd.DataFrame(found, columns=["network", *_COLUMNS])


_COLUMNS = (
    *("who", "seconds", "over_heuristic", "low", "high", "source", "samples", "kept"),
    "over_peer",
)


def _rows_of(network: NetworkTimes) -> Iterator[dict[str, object]]:
    def row(who: str, seconds: float, source: str, samples: int = 0, kept: bool = False,
            over: Sequence[float] = (math.nan,) * 3, over_peer: float = math.nan,
            ) -> dict[str, object]:  # fmt: skip
        values = who, seconds, *over, source, samples, kept, over_peer
        return dict(zip(_COLUMNS, values, strict=True))

    names = "layers: naive loops", "layers: heuristic", "layers: tuned"
    sums = zip(names, network_seconds(network.layers), strict=True)
    yield from (row(who, seconds, SUM) for who, seconds in sums if seconds == seconds)
    if final := network.final:
        for name, times in final.samples.items():
            seconds = final.seconds(name)
            over = (final.seconds(HEURISTIC) / seconds, *final.interval(name))
            yield row(f"plan: {name}", seconds, RACED, len(times), name == final.kept, over)
    both = beside(network)
    for r in network.benched:
        who = "fastrun, beside them" if r["engine"] == _OURS else r["engine"]
        gain = both.theirs / r["seconds"] if both else math.nan
        yield row(who, r["seconds"], BENCH, len(r["samples"]), over_peer=gain)


def explanation(network: NetworkTimes) -> str:
    """What the times of a network mean."""
    parts = [
        f"Sums are of {plural(sum(s.count for s in network.layers), 'convolution')}, each timed "
        "alone. A network does more, and finds its data in other caches."
    ]
    if network.final:
        times = network.final.samples[network.final.kept]
        parts.append(
            f"Plans raced as whole networks, with {plural(len(times), 'run')} each in interleaved "
            f"rounds ({network.final.time[:10]}); kept: {network.final.kept}, "
            f"{network.final.verdict}."
        )
    else:
        parts.append("No plan was timed as a whole: `fastrun tune` does that at its end.")
    if network.benched:
        parts.append(
            f"Other engines are from `{BENCHED}`, which is another run: compare them only with "
            "the fastrun of that run."
        )
    if both := beside(network):
        parts.append(
            f"There fastrun took {ms(both.ours)} ms and {both.engine}, the best of them, "
            f"{ms(both.theirs)} ms: {ratio(both.theirs / both.ours)}."
        )
    return " ".join(parts)


def figure(table: pd.DataFrame) -> Figure:
    """The times of one network, from the rows of `times_frame`."""
    title = f"{table['network'].iloc[0]}: sums of layers, plans, other engines"
    colours = dict(zip((SUM, RACED, BENCH), (FAINT, *COLOURS), strict=False))
    with layer_canvas(table.assign(layer=table["who"]), title, "ms, logarithmic") as (page, axes):
        axes.set_xscale("log")
        low = 1e3 * table["seconds"].min() / 2
        for y, row in enumerate(rows(table)):  # dots, as a logarithmic axis has no zero for bars
            took = 1e3 * row.seconds
            axes.hlines(y, low, took, color=FAINT, linewidth=0.6)
            axes.plot(took, y, "o", markersize=7, color=colours[row.source])
            note(axes, 1.08 * took, y, f"{ms(row.seconds)}{' (kept)' * row.kept}")
        axes.set_xlim(low, 4e3 * table["seconds"].max())
        plain_log(axes)
        present = [source for source in colours if source in set(table["source"])]
        legend(page, [mark("o", colours[source], source) for source in present])
    return page
