"""Figures with a row for each layer of a network, in the network's order from top to bottom.

`best` is always a `best_frame`. Tables hold seconds and FLOP/s; axes show ms and GFLOP/s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.ticker import MaxNLocator

from fastrun.tuner.records.statistics import PRACTICAL
from fastrun.tuner.records.units import ms, percent, ratio
from fastrun.tuner.report.frames import rows
from fastrun.tuner.report.style import (
    COLOURS,
    FAINT,
    INK,
    PAPER,
    Figure,
    Line2D,
    canvas,
    colour_of,
    layer_canvas,
    legend,
    legend_of_algorithms,
    mark,
    mark_of,
    note,
    plain_log,
    top,
)

_VERDICTS = {"heuristic": "the heuristic is best"}


def over_naive(best: pd.DataFrame) -> Figure:
    """The speed-up of each layer over the naive loop."""
    with layer_canvas(best, "Faster than the naive loop", "times, logarithmic") as (figure, axes):
        axes.set_xscale("log")
        for y, row in enumerate(rows(best)):
            colour = colour_of(row.algorithm)
            axes.barh(y, row.speedup_naive - 1, left=1, height=0.62, color=colour)
            note(axes, row.speedup_naive, y, ratio(row.speedup_naive))
        axes.set_xlim(1, top(best["speedup_naive"], 2) * 2.2)
        plain_log(axes)
        legend_of_algorithms(figure, best["algorithm"], "s")
    return figure


def over_heuristic(best: pd.DataFrame) -> Figure:
    """The speed-up of each layer over the heuristic, with 95 % intervals."""
    title = "Faster than the heuristic, by tuning alone"
    with layer_canvas(best, title, "times, with 95 % interval") as (figure, axes):
        axes.axvspan(1 / PRACTICAL, PRACTICAL, color=FAINT, alpha=0.25, linewidth=0)
        axes.axvline(1, color=INK, linewidth=0.8)
        for y, row in enumerate(rows(best)):
            sure = row.verdict == "faster"
            colour = COLOURS[0] if sure else FAINT
            if not math.isnan(row.low):
                axes.plot([row.low, row.high], [y, y], color=colour, linewidth=2.2)
            axes.plot(
                row.speedup_heuristic, y, "o", color=colour, markersize=5.5,
                markerfacecolor=colour if sure else PAPER,
            )  # fmt: skip
            end = max(row.speedup_heuristic, row.high if not math.isnan(row.high) else 0)
            words = (
                ratio(row.speedup_heuristic) if sure else _VERDICTS.get(row.verdict, row.verdict)
            )
            note(axes, end, y, words)
        low = min(0.95, best[["low", "speedup_heuristic"]].min().min() - 0.02)
        high = top(best[["high", "speedup_heuristic"]].max(axis=1), 1.1)
        if high > 3:
            axes.set_xscale("log")
            axes.set_xlim(low, high * 1.6)
            plain_log(axes)
        else:
            axes.set_xlim(low, high + 0.28 * (high - low))
        marks = [
            mark("o", COLOURS[0], "faster: the interval clears 3 %"),
            mark("o", FAINT, "not surely faster", hollow=True),
        ]
        legend(figure, marks)
    return figure


def share_of_peak(best: pd.DataFrame, peak: float) -> Figure:
    """The share of `peak` (FLOP/s) of each layer's best schedule and of the heuristic's."""
    title = f"Share of the measured peak, {peak / 1e9:.0f} GFLOP/s"
    with layer_canvas(best, title, "per cent of peak") as (figure, axes):
        for y, row in enumerate(rows(best)):
            scale = 100 * row.flops / peak
            spread = [
                [max(0.0, scale / row.best - scale / row.p90)],
                [max(0.0, scale / row.p10 - scale / row.best)],
            ]
            axes.barh(
                y, 100 * row.share, height=0.62, color=colour_of(row.algorithm),
                xerr=spread, error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )  # fmt: skip
            axes.plot(
                100 * row.heuristic_share, y, "|", color=INK, markersize=11, markeredgewidth=1.6
            )
            # The number stands right of the peak's line, which would cross it.
            note(axes, max(100, scale / row.p10), y, percent(row.share))
        axes.axvline(100, color=INK, linewidth=1.4)
        above = top(best["share"], 0) > 1
        axes.set_xlim(0, 116 * top(best["share"], 1) if above else 116)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        marks = [
            mark("|", INK, "heuristic"),
            Line2D([], [], color=INK, linewidth=1, label="80 % of samples"),
            Line2D([], [], color=INK, linewidth=1.6, label="peak"),
        ]
        legend_of_algorithms(figure, best["algorithm"], "s", marks)
    return figure


def time_per_layer(best: pd.DataFrame) -> Figure:
    """The times of all occurrences of each layer in the network, heuristic and best."""
    title = "Where the time goes"
    with layer_canvas(best, title, "ms in the whole network") as (figure, axes):
        for y, row in enumerate(rows(best)):
            before, after = 1e3 * row.count * row.heuristic, 1e3 * row.count * row.best
            axes.plot([after, before], [y, y], color=FAINT, linewidth=1.6)
            axes.plot(before, y, "o", color=FAINT, markersize=5.5, markerfacecolor=PAPER)
            axes.plot(after, y, "o", color=COLOURS[0], markersize=5.5)
            words = (
                ms(after / 1e3) if after == before else f"{ms(before / 1e3)} → {ms(after / 1e3)}"
            )
            words += f" ({row.count}x)" if row.count > 1 else ""
            note(axes, max(before, after) if before == before else after, y, words)
        longest = best["count"] * best[["heuristic", "best"]].max(axis=1)
        axes.set_xlim(0, 1.5e3 * top(longest, 1e-6))
        marks = [mark("o", FAINT, "heuristic", hollow=True), mark("o", COLOURS[0], "best")]
        legend(figure, marks)
    return figure


def roofline(best: pd.DataFrame, peak: float, read: Mapping[str, float]) -> Figure:
    """Each layer's rate below the limits of `peak` (FLOP/s) and `read` (level -> bytes/s)."""
    with canvas(f"Roofline, peak {peak / 1e9:.0f} GFLOP/s", 3.4) as (figure, axes):
        axes.grid(visible=True)
        axes.set_xscale("log")
        axes.set_yscale("log")
        knees = {level: peak / rate for level, rate in read.items()}
        low = min([best["intensity"].min(), *knees.values()]) / 1.5
        high = best["intensity"].max() * 2
        for n, (level, knee) in enumerate(knees.items()):
            axes.plot([low, knee], [low * peak / knee / 1e9, peak / 1e9], color=FAINT, linewidth=1)
            axes.annotate(
                level, (knee, peak / 1e9), xytext=(0, 4 + 9 * (n % 2)), textcoords="offset points",
                ha="center", fontsize=7.5,
            )  # fmt: skip
        first = min(knees.values(), default=low)
        axes.plot([first, high], [peak / 1e9] * 2, color=INK, linewidth=1.4)
        for row in rows(best[best["algorithm"] != ""]):
            axes.plot(
                row.intensity, row.gflops, mark_of(row.algorithm), color=colour_of(row.algorithm),
                markersize=6, markeredgecolor=PAPER, markeredgewidth=0.5,
            )  # fmt: skip
        axes.set_xlim(low, high)
        rates = best["gflops"].dropna()
        axes.set_ylim(0.6 * min([peak / 1e9, *rates]), 1.6 * max([peak / 1e9, *rates]))
        axes.set_xlabel("FLOP per byte, every tensor moved once")
        axes.set_ylabel("GFLOP/s")
        plain_log(axes, "x")
        plain_log(axes, "y")
        legend_of_algorithms(figure, best["algorithm"])
    return figure
