"""Figures of records. Every function takes a table of `tuner.frames` and returns a Figure.

`best` is a `best_frame` everywhere; tables hold seconds and FLOP/s, axes show ms and GFLOP/s.
Layers go down the page in the network's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from kernels.core.template import templates
from tuner.look import (
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
    rows,
    short,
    top,
)
from tuner.standing import PRACTICAL
from tuner.units import ms, percent, ratio

_VERDICTS = {"heuristic": "the heuristic is best"}


def over_naive(best: pd.DataFrame) -> Figure:
    """How many times faster than the naive loop each layer is."""
    with layer_canvas(best, "Faster than the naive loop", "times, logarithmic") as (figure, axes):
        axes.set_xscale("log")
        for y, row in enumerate(rows(best)):
            colour = _colour(row.algorithm)
            axes.barh(y, row.speedup_naive - 1, left=1, height=0.62, color=colour)
            note(axes, row.speedup_naive, y, ratio(row.speedup_naive))
        axes.set_xlim(1, top(best["speedup_naive"], 2) * 2.2)
        plain_log(axes)
        _legend_of_algorithms(figure, best["algorithm"], "s")
    return figure


def over_heuristic(best: pd.DataFrame) -> Figure:
    """How many times faster than the heuristic each layer is, with 95 % intervals."""
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
    """What share of `peak` (FLOP/s) each layer reaches, and what the heuristic did."""
    title = f"Share of the measured peak, {peak / 1e9:.0f} GFLOP/s"
    with layer_canvas(best, title, "per cent of peak") as (figure, axes):
        for y, row in enumerate(rows(best)):
            scale = 100 * row.flops / peak
            spread = [
                [max(0.0, scale / row.best - scale / row.p90)],
                [max(0.0, scale / row.p10 - scale / row.best)],
            ]
            axes.barh(
                y, 100 * row.share, height=0.62, color=_colour(row.algorithm),
                xerr=spread, error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )  # fmt: skip
            axes.plot(
                100 * row.heuristic_share, y, "|", color=INK, markersize=11, markeredgewidth=1.6
            )
            # Beyond the peak's line, which would cut through the number.
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
        _legend_of_algorithms(figure, best["algorithm"], "s", marks)
    return figure


def time_per_layer(best: pd.DataFrame) -> Figure:
    """Where the network's time goes: all occurrences of each layer, heuristic and best."""
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


def convergence(table: pd.DataFrame) -> Figure:
    """How the best so far falls over the trials; a `convergence_frame`."""
    with canvas("How the search went", 3.0) as (figure, axes):
        axes.grid(axis="both")
        curves = {
            problem: group.set_index("trial")["best"] / group["best"].min()
            for problem, group in table.groupby("problem", sort=False)
        }
        for curve in curves.values():
            axes.step(curve.index, curve, where="post", color=FAINT, linewidth=0.8, alpha=0.8)
        middle = pd.DataFrame(curves).ffill().median(axis=1)
        axes.step(middle.index, middle, where="post", color=COLOURS[0], linewidth=2.2)
        axes.set_xlabel("trials of a problem")
        axes.set_ylabel("best so far / best found")
        axes.set_ylim(0.97, min(4.0, max(1.2, 1.1 * float(middle.max()))))
        axes.set_xlim(1, max([2, *map(len, curves.values())]))
        lines = [
            Line2D([], [], color=COLOURS[0], linewidth=2.2, label="median of the problems"),
            Line2D([], [], color=FAINT, linewidth=0.8, label="one problem"),
        ]
        legend(figure, lines)
    return figure


def trials(table: pd.DataFrame) -> Figure:
    """Every trial of a search by algorithm, and the best so far; a `frame` of one problem."""
    shown = table.reset_index(drop=True)
    with canvas("Every trial", 3.4) as (figure, axes):
        axes.grid(axis="both")
        axes.set_yscale("log")
        times = 1e3 * shown["seconds_per_call"]
        first = shown.index + 1
        axes.step(first, times.cummin(), where="post", color=INK, linewidth=1.2)
        names = shown["schedule"].str.partition("(")[0]
        for name in names.unique():
            mine = names == name
            axes.plot(
                first[mine], times[mine], _shape(name), color=_colour(name), markersize=4.5,
                markeredgecolor=PAPER, markeredgewidth=0.5, linestyle="",
            )  # fmt: skip
        axes.set_ylim(0.9 * times.min(), 1.1 * times.max())
        plain_log(axes, "y")
        axes.set_xlabel("correct trials, in order")
        axes.set_ylabel("ms")
        line = Line2D([], [], color=INK, linewidth=1.2, label="best so far")
        _legend_of_algorithms(figure, names, further=[line])
    return figure


def search_curves(table: pd.DataFrame) -> Figure:
    """What search methods have found after so many evaluations; a `replay.curves_frame`."""
    names, methods = list(table["space"].unique()), list(table["sampler"].unique())
    with canvas("Search methods on recorded spaces", 0.9 + 1.7 * len(names)) as (figure, first):
        first.remove()
        for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
            axes.grid(axis="both")
            axes.tick_params(length=0)
            axes.set_xscale("log")
            of_space = table[table["space"] == name]
            for n, method in enumerate(methods):
                curve = of_space[of_space["sampler"] == method]
                x, colour = curve["evaluations"], COLOURS[n % len(COLOURS)]
                axes.fill_between(
                    x, curve["low"], curve["high"], step="post", color=colour, alpha=0.15,
                    linewidth=0,
                )  # fmt: skip
                axes.step(x, curve["median"], where="post", color=colour, linewidth=1.6)
            axes.plot(x, curve["random"], "--", color=INK, linewidth=1)
            axes.set_ylim(0.98, min(4.0, max(1.3, float(of_space["random"].iloc[0]))))
            axes.set_xlim(1, max(2, int(x.max())))
            axes.set_title(short(name, 52), fontweight="normal", fontsize=8)
            plain_log(axes)
        axes.set_xlabel("schedules measured; bands hold 80 % of the walks")
        figure.supylabel("times the optimum", fontsize=8.5)
        lines = [
            Line2D([], [], color=COLOURS[n % len(COLOURS)], linewidth=1.6, label=method)
            for n, method in enumerate(methods)
        ]
        dashed = Line2D([], [], color=INK, linewidth=1, linestyle="--", label="random, calculated")
        legend(figure, [*lines, dashed])
    return figure


def algorithms(table: pd.DataFrame, best: pd.DataFrame) -> Figure:
    """The best of each algorithm against the layer's winner; an `algorithms_frame`."""
    title = "The best of each algorithm"
    with layer_canvas(best, title, "times as long as the winner, logarithmic") as (figure, axes):
        axes.set_xscale("log")
        tried = table[~table["baseline"]]
        winners = tried.groupby("problem")["best"].min()
        largest = 1.0
        for y, problem in enumerate(best["problem"]):
            # The winner last, so that nothing hides it.
            of_layer = tried[tried["problem"] == problem].sort_values("best", ascending=False)
            for row in rows(of_layer):
                slower = row.best / winners[problem]
                largest = max(largest, slower)
                axes.plot(
                    slower, y, _shape(row.algorithm), color=_colour(row.algorithm),
                    markersize=6, markeredgecolor=PAPER, markeredgewidth=0.5, clip_on=False,
                )  # fmt: skip
        axes.set_xlim(0.93, max(2.0, largest * 1.1))
        plain_log(axes)
        _legend_of_algorithms(figure, tried["algorithm"])
    return figure


def pareto(table: pd.DataFrame) -> Figure:
    """What less workspace and a smaller error cost in time; a `pareto_frame`."""
    with canvas("Time, workspace, error", 5.2) as (figure, first):
        first.remove()
        upper, lower = figure.subplots(2, 1, sharey=True)
        # A schedule without workspace has a place of its own, left of a kibibyte.
        kibibytes = (table["workspace"] / 1024).clip(lower=0.5)
        for axes, values in ((upper, kibibytes), (lower, table["error_rms"])):
            axes.grid(axis="both")
            axes.tick_params(length=0)
            axes.set_xscale("log")
            axes.set_yscale("log")
            for _, group in table.assign(x=values).groupby("problem", sort=False):
                # The fastest comes first: the line joins what takes less than all before it.
                less = group[group["x"] < group["x"].cummin().shift(fill_value=math.inf)]
                axes.plot(less["x"], less["slower"], color=FAINT, linewidth=0.6, alpha=0.6)
                for row in rows(group):
                    axes.plot(
                        row.x, row.slower, _shape(row.algorithm), color=_colour(row.algorithm),
                        markersize=5, markeredgecolor=PAPER, markeredgewidth=0.5, clip_on=False,
                    )  # fmt: skip
            axes.set_ylabel("times as long as the fastest")
            axes.xaxis.set_minor_locator(NullLocator())
        upper.set_ylim(0.95, 1.15 * top(table["slower"], 1.5))
        plain_log(upper, "y")
        upper.set_xlim(0.4, 2 * top(kibibytes, 1))
        upper.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else "")
        )
        upper.set_xlabel("workspace, KiB (far left: none)")
        plain_log(lower)
        lower.set_xlabel("rms error over the output's")
        _legend_of_algorithms(figure, table["algorithm"])
    return figure


def importance(table: pd.DataFrame) -> Figure:
    """Which parameters explain the times of the algorithms tried most; an `importance_frame`."""
    names = list(dict.fromkeys(table["algorithm"]))[:3]
    worth = table[table["importance"] >= 0.01]
    shown = pd.concat([worth[worth["algorithm"] == name].head(6) for name in names])
    named = shown.rename(columns={"parameter": "layer"})
    title = "What matters to each algorithm"
    with layer_canvas(named, title, "per cent of the variance of log time") as (figure, axes):
        for y, row in enumerate(rows(shown)):
            axes.barh(y, 100 * row.importance, height=0.62, color=_colour(row.algorithm))
            note(axes, 100 * row.importance, y, percent(row.importance))
        axes.set_xlim(0, 115 * top(shown["importance"], 0.1))
        _legend_of_algorithms(figure, shown["algorithm"], "s")
    return figure


def outcomes(table: pd.DataFrame) -> Figure:
    """Trials that came to nothing, by reason; an `outcomes_frame`."""
    shown = table.head(12)
    with canvas("Trials that came to nothing", 1.0 + 0.42 * max(1, len(shown))) as (figure, axes):
        for y, row in enumerate(rows(shown)):
            axes.barh(y, row.count, height=0.4, color=COLOURS[1])
            note(axes, row.count, y, str(row.count))
            axes.text(
                0, y - 0.36, short(f"{row.outcome}: {row.reason}", 66), fontsize=7.5, va="center"
            )
        axes.set_ylim(max(1, len(shown)) - 0.6, -0.8)
        axes.set_yticks([])
        axes.set_xlim(0, 1.15 * top(shown["count"], 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("trials")
    return figure


def roofline(best: pd.DataFrame, peak: float, read: Mapping[str, float]) -> Figure:
    """Each layer's rate against what `peak` (FLOP/s) and `read` (level -> bytes/s) allow."""
    with canvas(f"Roofline, peak {peak / 1e9:.0f} GFLOP/s", 3.4) as (figure, axes):
        axes.grid(axis="both")
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
                row.intensity, row.gflops, _shape(row.algorithm), color=_colour(row.algorithm),
                markersize=6, markeredgecolor=PAPER, markeredgewidth=0.5,
            )  # fmt: skip
        axes.set_xlim(low, high)
        rates = best["gflops"].dropna()
        axes.set_ylim(0.6 * min([peak / 1e9, *rates]), 1.6 * max([peak / 1e9, *rates]))
        axes.set_xlabel("FLOP per byte, every tensor moved once")
        axes.set_ylabel("GFLOP/s")
        plain_log(axes, "x")
        plain_log(axes, "y")
        _legend_of_algorithms(figure, best["algorithm"])
    return figure


def steps(table: pd.DataFrame, most: int = 24) -> Figure:
    """Where a run of a network spends its time: the `most` longest steps, in the network's order.

    `table` is of the rows of `Executable.profile`.
    """
    shown = table.loc[table["seconds"].nlargest(most).sort_index().index]
    # Exporters name a tensor by its way through the modules; of a schedule the algorithm is enough.
    labels = shown["output"].str.strip("/").str.removesuffix("_output_0")
    kinds = shown["algorithm"].str.replace(r"\(.*?\)| by \d+ rows", "", regex=True)
    shown = shown.assign(layer=labels, algorithm=kinds)
    title = f"{len(shown)} of {len(table)} steps, {percent(shown['share'].sum())} of the time"
    with layer_canvas(shown, title, "microseconds") as (figure, axes):
        for y, row in enumerate(rows(shown)):
            axes.barh(y, 1e6 * row.seconds, height=0.62, color=_colour(row.algorithm))
            note(axes, 1e6 * row.seconds, y, percent(row.share))
        axes.set_xlim(0, 1.15e6 * top(shown["seconds"], 1e-9))
        _legend_of_algorithms(figure, shown["algorithm"], "s")
    return figure


def _place(algorithm: str) -> int:
    """Of its colour; what runs in bands has that of its first part."""
    names = [t.name for t in templates().values() if not t.baseline]
    first = algorithm.partition(" + ")[0]
    return names.index(first) if first in names else len(names)


def _colour(algorithm: str) -> str:
    return COLOURS[_place(algorithm) % len(COLOURS)] if algorithm else FAINT


def _shape(algorithm: str) -> str:
    return MARKS[_place(algorithm) % len(MARKS)]


def _legend_of_algorithms(
    figure: Figure, names: pd.Series, shape: str = "", further: Sequence[Line2D] = ()
) -> None:
    """Colours and marks of the algorithms that occur; all of one shape if that is given."""
    found = sorted({name for name in names if name}, key=_place)
    legend(figure, [*(mark(shape or _shape(n), _colour(n), n) for n in found), *further])
