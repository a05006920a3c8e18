"""Figures of comparisons: two ways to compute the same layers, and curves over a number.

A table has a row for each comparison. Its columns `before` and `after` are the two ways, `speedup`
is that of the second, `low` to `high` the 95 % interval, and `verdict` the conclusion.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from fastrun.tuner.records.statistics import PRACTICAL
from fastrun.tuner.records.units import ratio
from fastrun.tuner.report.frames import rows
from fastrun.tuner.report.style import (
    COLOURS,
    FAINT,
    INK,
    MARKS,
    PAPER,
    Figure,
    Line2D,
    canvas,
    layer_canvas,
    legend,
    mark,
    note,
    plain_log,
    top,
)


def speedups(table: pd.DataFrame, title: str, by: str) -> Figure:
    """The speed-up of the second way: a row for each layer, a mark for each value of `by`."""
    layers = table.drop_duplicates("layer")
    kinds = list(dict.fromkeys(table[by]))
    place = {layer: y for y, layer in enumerate(layers["layer"])}
    with layer_canvas(layers, title, "times, with 95 % interval") as (figure, axes):
        axes.axvspan(1 / PRACTICAL, PRACTICAL, color=FAINT, alpha=0.25, linewidth=0)
        axes.axvline(1, color=INK, linewidth=0.8)
        for row in rows(table.assign(kind=table[by])):
            n = kinds.index(row.kind)
            y = place[row.layer] + 0.44 * ((n + 0.5) / len(kinds) - 0.5)
            colour, sure = COLOURS[n], row.verdict in ("faster", "slower")
            axes.plot([row.low, row.high], [y, y], color=colour, linewidth=1.4)
            axes.plot(
                row.speedup, y, MARKS[n], color=colour, markersize=4.5,
                markerfacecolor=colour if sure else PAPER,
            )  # fmt: skip
        if len(place) > 1:
            axes.grid(visible=True)
        if top(table["speedup"], 1) > 2.5:
            axes.set_xscale("log")
            plain_log(axes)
        marks = [mark(MARKS[n], COLOURS[n], str(kind)) for n, kind in enumerate(kinds)]
        legend(figure, [*marks, mark("o", FAINT, "not surely 3 % apart", hollow=True)])
    return figure


def workspaces(
    table: pd.DataFrame, title: str, before: str, after: str, caches: Mapping[str, int]
) -> Figure:
    """Bytes of workspace of both ways: a row for each layer, and the sizes of caches."""
    with layer_canvas(table, title, "workspace, MiB, logarithmic") as (figure, axes):
        axes.set_xscale("log")
        mebi = 2**20
        for y, row in enumerate(rows(table)):
            ends = row.after_bytes / mebi, row.before_bytes / mebi
            axes.plot(ends, [y, y], color=FAINT, linewidth=1.6)
            axes.plot(ends[1], y, "o", color=FAINT, markersize=5.5, markerfacecolor=PAPER)
            axes.plot(ends[0], y, "o", color=COLOURS[0], markersize=5.5)
            note(axes, max(ends), y, ratio(ends[1] / ends[0]))
        sizes = table[["before_bytes", "after_bytes"]]
        low, high = sizes.min().min() / mebi / 2, sizes.max().max() / mebi * 5
        axes.set_xlim(low, high)
        for name, size in caches.items():
            if low < size / mebi < high:
                axes.axvline(size / mebi, color=INK, linewidth=0.8)
                axes.text(
                    size / mebi, -0.75, name, ha="center", fontsize=7.5, bbox=_OPAQUE, zorder=3
                )
        plain_log(axes)
        legend(figure, [mark("o", FAINT, before, hollow=True), mark("o", COLOURS[0], after)])
    return figure


def curves(
    table: pd.DataFrame,
    title: str,
    x: tuple[str, str],
    y: tuple[str, str],
    by: str,
    reference: float | None = None,
) -> Figure:
    """`y` over `x`, a curve for each value of `by`; `x` and `y` are (column, label).

    Columns `low` and `high` become error bars if they exist. A line marks the value `reference` of
    `x`. `x` is logarithmic, and so is `y` if it spans more than a factor of 4.
    """
    looks = {str(kind): _look(n) for n, kind in enumerate(dict.fromkeys(table[by]))}
    with canvas(title, 3.4) as (figure, axes):
        axes.grid(visible=True)
        axes.set_xscale("log")
        axes.set_xlim(table[x[0]].min() / 1.2, table[x[0]].max() * 1.2)
        if reference is not None:
            axes.axvline(reference, color=INK, linewidth=0.8)
        for kind, (colour, symbol) in looks.items():
            of_kind = table[table[by].astype(str) == kind].sort_values(x[0])
            axes.plot(
                of_kind[x[0]], of_kind[y[0]], marker=symbol, color=colour,
                linewidth=1.2, markersize=4.5, markeredgecolor=PAPER, markeredgewidth=0.5,
            )  # fmt: skip
            if {"low", "high"} <= set(table.columns):
                axes.vlines(of_kind[x[0]], of_kind["low"], of_kind["high"], colour, linewidth=1)
        axes.set_xlabel(x[1])
        axes.set_ylabel(y[1])
        if table[y[0]].max() > 4 * table[y[0]].min():
            axes.set_yscale("log")
            plain_log(axes, "y")
        plain_log(axes, "x")
        values = sorted(set(table[x[0]]))
        if len(values) <= _TICKS:
            axes.set_xticks(values, [f"{value:.3g}" for value in values])
        legend(
            figure,
            [
                Line2D(
                    [], [], color=colour, marker=symbol, markersize=4.5, linewidth=1.2, label=kind
                )
                for kind, (colour, symbol) in looks.items()
            ],
        )
    return figure


def _look(n: int) -> tuple[str, str]:
    """The colour and mark of curve n. When the colours repeat, the marks change."""
    return COLOURS[n % len(COLOURS)], MARKS[(n + n // len(COLOURS)) % len(MARKS)]


def engines(table: pd.DataFrame, title: str) -> Figure:
    """The times of other engines as multiples of fastrun's, a row for each subject.

    Columns `subject`, `engine`, `times` (the multiple) and its range `low` to `high`.
    """
    subjects = list(dict.fromkeys(table["subject"]))
    names = list(dict.fromkeys(table["engine"]))
    layers = pd.DataFrame({"layer": subjects})
    with layer_canvas(layers, title, "times as long as ours, logarithmic") as (figure, axes):
        axes.set_xscale("log")
        axes.axvline(1, color=INK, linewidth=1.4)
        axes.grid(visible=True)
        for row in rows(table):
            n = names.index(row.engine)
            y = subjects.index(row.subject) + 0.5 * ((n + 0.5) / len(names) - 0.5)
            axes.plot([row.low, row.high], [y, y], color=COLOURS[n], linewidth=1)
            axes.plot(row.times, y, MARKS[n], color=COLOURS[n], markersize=4.5)
        axes.set_xlim(min(0.9, table["low"].min() / 1.1), max(2.0, 1.1 * table["high"].max()))
        plain_log(axes)
        legend(figure, [mark(MARKS[n], COLOURS[n], name) for n, name in enumerate(names)])
    return figure


def trade(table: pd.DataFrame, title: str) -> Figure:
    """Accuracy over time: a mark for each engine.

    Columns `engine`, `seconds`, `accuracy` and its 95 % interval `low` to `high`.
    """
    with canvas(title, 3.6) as (figure, axes):
        axes.grid(visible=True)
        axes.set_xscale("log")
        marks = []
        for n, row in enumerate(rows(table)):
            colour, symbol = _look(n)
            axes.vlines(1e3 * row.seconds, 100 * row.low, 100 * row.high, colour, linewidth=1)
            axes.plot(1e3 * row.seconds, 100 * row.accuracy, symbol, color=colour, markersize=5)
            marks.append(mark(symbol, colour, row.engine))
        axes.set_xlim(900 * table["seconds"].min(), 1100 * table["seconds"].max())
        axes.set_xlabel("ms, logarithmic")
        axes.set_ylabel("right answers, %, with 95 % interval")
        plain_log(axes)
        legend(figure, marks)
    return figure


_TICKS = 8  # so many values have room below an axis
_OPAQUE = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
