"""One, two and three levels of blocking by time and memory traffic, and formulas against search.

    python -m fastrun.benchmarks.experiments.levels [--quick] [--json OUT] [--csv FOLDER]

One level is the register tile alone: the image is one block. Two levels have blocks for L2 as well.
Three are the formulas of all levels. The search takes the best of the formula's blocks from a
quarter to four times their size. Traffic is counted on simulated caches of the processor's sizes
(`kernels/native/traffic.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from fastrun.benchmarks.experiments.command import Column, Part, command, show
from fastrun.benchmarks.experiments.pairs import Findings, raced
from fastrun.kernels.codegen.blocking import REUSED, block_of_k
from fastrun.kernels.codegen.tiling import channel_lanes
from fastrun.kernels.conv.winograd.transform import tile_grid
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.native.traffic import traffic
from fastrun.kernels.registry import parse_schedule, templates
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.measure.races import Format
from fastrun.tuner.records.record import Record, Stage
from fastrun.tuner.records.statistics import ENOUGH
from fastrun.tuner.records.units import ms, percent, ratio, size
from fastrun.tuner.records.verdicts import speedup_interval, verdict
from fastrun.tuner.report.frames import layer_labels
from fastrun.tuner.terminal.exits import ended, leave

_SWEEP = Format(Stage.RACE, processes=1, rounds=3, block=2e-3)
_FINAL = Format(Stage.FINAL, processes=3, rounds=3, block=2e-3)
_QUICK = Format(Stage.FINAL, processes=1, rounds=ENOUGH, block=1e-3)

WAYS = ("one", "two", "three", "search")
"""What is compared, in the order of the columns."""

LAYERS = {
    "winograd": (
        "conv 1x512x7x7 512x3x3 s1 p1 bias relu",
        "conv 1x256x14x14 256x3x3 s1 p1 bias relu",
        "conv 1x64x56x56 64x3x3 s1 p1 bias relu",
        "conv 1x16x540x960 16x3x3 s1 p1 bias relu",
    ),
    "pointwise": (
        "conv 1x2048x7x7 512x1x1 s1 p0 bias relu",
        "conv 1x512x28x28 128x1x1 s1 p0 bias relu",
        "conv 1x256x56x56 64x1x1 s1 p0 bias relu",
        "conv 1x64x270x480 64x1x1 s1 p0 bias relu",
    ),
    "direct": (
        "conv 1x512x14x14 512x3x3 s2 p1 bias relu",
        "conv 1x128x56x56 256x3x3 s2 p1 bias relu",
        "conv 1x64x270x480 64x3x3 s2 p1 bias relu",
        "conv 1x3x2160x3840 16x3x3 s2 p1 bias relu",
    ),
    "im2col": (
        "conv 1x512x14x14 512x3x3 s2 p1 bias relu",
        "conv 1x64x56x56 64x3x3 s1 p1 bias relu",
        "conv 1x32x270x480 32x3x3 s2 p1 bias relu",
    ),
}
"""The layers of each algorithm, from maps of 7x7 to images of 3840x2160."""


@dataclass(frozen=True)
class Ways:
    """The schedules of a layer by one algorithm, with one to three levels and for the search."""

    one: Any
    two: Any
    three: Any
    search: Sequence[Any]


def ways(algorithm: str, p: ConvProblem, cpu: Cpu) -> Ways:
    """The schedules to compare.

    Raises:
        KeyError: the algorithm has no blocks.
    """
    formula = templates()[algorithm].heuristic(p, cpu)
    one, two, three, fields = _WAYS[algorithm](p, formula, cpu)
    searched = dict.fromkeys([formula, *_around(three, fields), *_around(formula, fields)])
    return Ways(one, two, formula, list(searched))


def _around(schedule: Any, fields: Sequence[tuple[str, int]]) -> Iterator[Any]:
    """The schedule, and those with one block of another size; `fields` are their largest sizes."""
    yield schedule
    for name, most in fields:
        value = getattr(schedule, name)
        for factor in (0.25, 0.5, 2, 4):
            size = min(most, max(1, round(int(value or most) * factor)))
            yield replace(schedule, **{name: str(size) if isinstance(value, str) else size})


_Made = tuple[Any, Any, Any, Sequence[tuple[str, int]]]


def _direct(p: ConvProblem, s: Any, cpu: Cpu) -> _Made:
    most = -(-p.oh // s.tile_h)
    one = replace(s, rows=most, columns="", kc="")
    lanes = channel_lanes(p.group_oc, layout_pair(s.layout)[1], cpu)
    unit = layout_pair(s.layout)[0].blocked or 1
    kc = block_of_k(p, s.tile_h * s.tile_w, s.cols * lanes, unit, REUSED, cpu)
    three = replace(s, kc="" if kc == p.group_c else str(kc))
    return one, replace(s, kc=""), three, [("rows", most)]


def _pointwise(p: ConvProblem, s: Any, cpu: Cpu) -> _Made:
    most = -(-p.h * p.w // s.rows)
    one, two = replace(s, tiles=most, kc=""), replace(s, kc="")
    unit, lanes = (
        layout_pair(s.layout)[0].blocked or 1,
        channel_lanes(p.group_oc, layout_pair(s.layout)[1], cpu),
    )
    kc = block_of_k(p, s.rows, s.cols * lanes, unit, REUSED, cpu)
    three = replace(s, kc="" if kc == p.group_c else str(kc))
    return one, two, three, [("tiles", most)]


def _im2col(p: ConvProblem, s: Any, cpu: Cpu) -> _Made:
    pixels = p.oh * p.ow
    fit = max(1, cpu.l2 // 2 // F32.bytes(p.depth))
    one = replace(s, block=pixels, kc=p.group_c)
    return one, replace(one, block=min(fit, pixels)), s, [("block", pixels), ("kc", p.group_c)]


def _winograd(p: ConvProblem, s: Any, cpu: Cpu) -> _Made:
    down, across = tile_grid(p, (s.mh, s.mw))
    planes, most = (s.mh + p.kernel[0] - 1) * (s.mw + p.kernel[1] - 1), p.n * down * across
    fit = max(1, cpu.l2 // 2 // F32.bytes(planes * p.group_c))
    one = replace(s, nr_tiles=most, split="tiles", oc_block=1)
    return one, replace(one, nr_tiles=min(fit, most)), s, [("nr_tiles", most)]


_WAYS: dict[str, Callable[[ConvProblem, Any, Cpu], _Made]] = {
    "direct": _direct,
    "im2col": _im2col,
    "pointwise": _pointwise,
    "winograd": _winograd,
}


def measure(quick: bool = False, algorithms: Sequence[str] = tuple(LAYERS)) -> Findings:
    """A row for each layer and algorithm.

    Columns: `algorithm`, `layer`, `problem`; for each of `WAYS` its seconds per call, its
    `<way>_schedule`, and bytes that each cache read, `<way>_l1` to `<way>_l3`; `three` over
    `search` as `speedup` with its interval `low` to `high`, and the `verdict` on the search.
    """
    cpu, rows = Cpu.host(), list[dict[str, object]]()
    records = list[Record]()
    with Measurer() as measurer:
        for algorithm in algorithms:
            problems = [ConvProblem.parse(text) for text in LAYERS[algorithm]]
            problems = sorted(problems, key=lambda p: p.flops)[:1] if quick else problems
            for p, label in zip(problems, layer_labels(problems), strict=True):
                row, timed = _row(measurer, algorithm, p, cpu, quick)
                rows.append({"algorithm": algorithm, "layer": label, **row})
                records += timed
    return Findings(pd.DataFrame(rows), records)


def _row(
    measurer: Measurer, algorithm: str, p: ConvProblem, cpu: Cpu, quick: bool
) -> tuple[dict[str, object], list[Record]]:
    template, found = templates()[algorithm], ways(algorithm, p, cpu)
    tried = [template.text(s) for s in (found.search[:2] if quick else found.search)]
    swept = raced(measurer, {p: tried}, _QUICK if quick else _SWEEP)
    timed = [r for r in swept.values() if r.samples]
    best = min(timed, key=lambda r: r.seconds_per_call).schedule
    texts = dict(zip(WAYS, [*map(template.text, (found.one, found.two, found.three)), best],
                     strict=True))  # fmt: skip
    finals = raced(measurer, {p: list(dict.fromkeys(texts.values()))}, _QUICK if quick else _FINAL)
    of = {way: finals[str(p), text] for way, text in texts.items()}
    low, high = speedup_interval(of["three"], of["search"])
    row: dict[str, object] = {
        "problem": str(p),
        "speedup": of["three"].seconds_per_call / of["search"].seconds_per_call,
        "low": low,
        "high": high,
        "verdict": verdict(of["three"], of["search"]),
    }
    for way, text in texts.items():
        program = template.program(p, parse_schedule(text)[1], cpu)
        counted = traffic(p, program, cpu)
        row |= {way: of[way].seconds_per_call, f"{way}_schedule": text}
        row |= {f"{way}_{level}": getattr(counted, level) for level in ("l1", "l2", "l3")}
    return row, [*swept.values(), *finals.values()]


def sweep(algorithm: str, p: ConvProblem, field: str, values: Sequence[int]) -> pd.DataFrame:
    """The traffic of the formula's schedule with other values of one field, and of its own.

    Columns: `value`, `formula` (whether it is the formula's), `cache` and `mebibytes` read by it.
    """
    template, cpu = templates()[algorithm], Cpu.host()
    formula, found = template.heuristic(p, cpu), list[tuple[int, bool, str, float]]()
    own = getattr(formula, field)
    for value in sorted({*values, int(own)} if own else {*values}):
        given = str(value) if isinstance(own, str) else value
        schedule = replace(formula, **{field: given})
        counted = traffic(p, template.program(p, schedule, cpu), cpu)
        for cache in ("l1", "l2", "l3"):
            read = getattr(counted, cache) / 2**20
            found.append((value, schedule == formula, cache.upper(), read))
    return pd.DataFrame(found, columns=["value", "formula", "cache", "mebibytes"])


def blocks(algorithms: Sequence[str], p: ConvProblem, cpu: Cpu) -> pd.DataFrame:
    """The blocks of the formulas' schedules: a row for each algorithm and level."""
    found = []
    for name in algorithms:
        template = templates()[name]
        schedule = template.heuristic(p, cpu)
        for block in template.levels(p, schedule, cpu):
            share = f"{size(block.size)}, {percent(block.share(cpu))}"
            found.append((name, block.level, block.fields, block.holds, share))
    return pd.DataFrame(found, columns=["algorithm", "level", "fields", "holds", "size"])


def _times(way: str) -> Column:
    return lambda r: ms(getattr(r, way))


def _bytes(level: str) -> Column:
    return lambda r: " ".join(size(getattr(r, f"{way}_{level}")) for way in WAYS[:3])


_ABOUT: dict[str, Column] = {"algorithm": lambda r: r.algorithm, "layer": lambda r: r.layer}

show_times = show(
    {
        **_ABOUT,
        "one level\nms>": _times("one"),
        "two\nms>": _times("two"),
        "three\nms>": _times("three"),
        "search\nms>": _times("search"),
        "three over\none>": lambda r: ratio(r.one / r.three),
        "search over\nthree>": lambda r: ratio(r.speedup),
        "verdict": lambda r: r.verdict,
    }
)

show_traffic = show(
    {
        **_ABOUT,
        "L1 read from L2\none, two, three": _bytes("l1"),
        "L2 read from L3\none, two, three": _bytes("l2"),
        "L3 read from memory\none, two, three": _bytes("l3"),
    }
)


def show_table(table: pd.DataFrame) -> None:
    """Print the times, then the traffic."""
    show_times(table)
    print("bytes read for a call, on simulated caches")
    show_traffic(table)


main = command("levels", __doc__, [Part("levels", measure, show_table)])

if __name__ == "__main__":
    leave(ended("levels", main))
