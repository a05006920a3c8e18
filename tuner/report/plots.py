"""Figures of searches, algorithms, schedules and steps; `layer_plots` has those of layers.

Every function takes a table of `tuner.report.frames` and returns a Figure. Tables hold seconds;
axes show ms. `best` is a `best_frame`.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from fastrun.tuner.records.units import percent
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
    short,
    top,
)


def convergence(table: pd.DataFrame) -> Figure:
    """The best time so far over the trials; of a `convergence_frame`."""
    with canvas("How the search went", 3.0) as (figure, axes):
        axes.grid(visible=True)
        curves = {
            problem: group.set_index("trial")["best"] / group["best"].min()
            for problem, group in table.groupby("problem", sort=False)
        }
        for curve in curves.values():
            axes.step(curve.index, curve, where="post", color=FAINT, linewidth=0.8, alpha=0.8)
        middle = pd.DataFrame(curves).ffill().median(axis=1)
        axes.step(middle.index, middle, where="post", color=COLOURS[0], linewidth=2.2)
        axes.set_xlabel("trials of a problem")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
    """Every trial of a search by algorithm, and the best so far; of a `frame` of one problem."""
    shown = table.reset_index(drop=True)
    with canvas("Every trial", 3.4) as (figure, axes):
        axes.grid(visible=True)
        axes.set_yscale("log")
        times = 1e3 * shown["seconds_per_call"]
        first = shown.index + 1
        axes.step(first, times.cummin(), where="post", color=INK, linewidth=1.2)
        names = shown["schedule"].str.partition("(")[0]
        for name in names.unique():
            mine = names == name
            axes.plot(
                first[mine], times[mine], mark_of(name), color=colour_of(name), markersize=4.5,
                markeredgecolor=PAPER, markeredgewidth=0.5, linestyle="",
            )  # fmt: skip
        axes.set_ylim(0.9 * times.min(), 1.1 * times.max())
        plain_log(axes, "y")
        axes.set_xlabel("correct trials, in order")
        axes.set_ylabel("ms")
        line = Line2D([], [], color=INK, linewidth=1.2, label="best so far")
        legend_of_algorithms(figure, names, further=[line])
    return figure


def search_curves(table: pd.DataFrame) -> Figure:
    """The best found by search methods after n evaluations; of a `replay.curves_frame`."""
    names, methods = list(table["space"].unique()), list(table["sampler"].unique())
    with canvas("Search methods on recorded spaces", 0.9 + 1.7 * len(names)) as (figure, first):
        first.remove()
        for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
            axes.grid(visible=True)
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
    """The best schedule of each algorithm over the layer's winner; of an `algorithms_frame`.

    One that did not race can seem faster than the winner.
    """
    title = "The best of each algorithm"
    with layer_canvas(best, title, "times as long as the winner, logarithmic") as (figure, axes):
        axes.set_xscale("log")
        tried = table[~table["baseline"]]
        winners = best.set_index("problem")["best"]
        winners = winners.fillna(tried.groupby("problem")["best"].min())
        least = largest = 1.0
        for y, problem in enumerate(best["problem"]):
            # The winner is drawn last, on top of the others.
            of_layer = tried[tried["problem"] == problem].sort_values("best", ascending=False)
            for row in rows(of_layer):
                slower = row.best / winners[problem]
                least, largest = min(least, slower), max(largest, slower)
                axes.plot(
                    slower, y, mark_of(row.algorithm), color=colour_of(row.algorithm),
                    markersize=6, markeredgecolor=PAPER, markeredgewidth=0.5, clip_on=False,
                )  # fmt: skip
        axes.set_xlim(0.93 * least, max(2.0, largest * 1.1))
        plain_log(axes)
        legend_of_algorithms(figure, tried["algorithm"])
    return figure


def pareto(table: pd.DataFrame) -> Figure:
    """The time that less workspace or a smaller error costs; of a `pareto_frame`."""
    with canvas("Time, workspace, error", 5.2) as (figure, first):
        first.remove()
        upper, lower = figure.subplots(2, 1, sharey=True)
        # Schedules without workspace stand left of one kibibyte.
        kibibytes = (table["workspace"] / 1024).clip(lower=0.5)
        for axes, values in ((upper, kibibytes), (lower, table["error_rms"])):
            axes.grid(visible=True)
            axes.tick_params(length=0)
            axes.set_xscale("log")
            axes.set_yscale("log")
            for _, group in table.assign(x=values).groupby("problem", sort=False):
                # The fastest comes first. The line joins schedules that need less than all before.
                less = group[group["x"] < group["x"].cummin().shift(fill_value=math.inf)]
                axes.plot(less["x"], less["slower"], color=FAINT, linewidth=0.6, alpha=0.6)
                for row in rows(group):
                    axes.plot(
                        row.x, row.slower, mark_of(row.algorithm), color=colour_of(row.algorithm),
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
        legend_of_algorithms(figure, table["algorithm"])
    return figure


def precision(table: pd.DataFrame) -> Figure:
    """The time that a smaller loss of precision costs; of a `precision_frame`."""
    with canvas("Time and loss by rounding", 3.4) as (figure, axes):
        axes.grid(visible=True)
        expected = table[~table["measured"]]
        axes.plot(
            expected["error"], 1e3 * expected["seconds"], ".-", color=FAINT, linewidth=0.8,
            markersize=4,
        )  # fmt: skip
        whole = table[table["measured"]].reset_index(drop=True)
        fastest = whole["seconds"].idxmin()
        for n, row in enumerate(rows(whole)):
            axes.plot(
                row.error, 1e3 * row.seconds, "D" if row.chosen else "o", clip_on=False, zorder=3,
                color=COLOURS[int(row.chosen)], markersize=7 if row.chosen else 5,
                markeredgecolor=PAPER, markeredgewidth=0.5,
            )  # fmt: skip
            named = {"float32": n == 0, "fastest": n == fastest, "chosen": row.chosen}
            words = [word for word, so in named.items() if so]
            if words:
                lost = f": {percent(row.lost, 1)} lost" if row.error else ""
                axes.annotate(
                    ", ".join(words) + lost, (row.error, 1e3 * row.seconds), xytext=(4, 6),
                    textcoords="offset points", fontsize=7.5,
                )  # fmt: skip
        axes.set_xlim(0, 1.6 * top(table["error"], 1e-9))
        axes.set_ylim(0, 1.15e3 * top(table["seconds"], 1e-9))
        axes.set_xlabel("rms error over the output's")
        axes.set_ylabel("ms")
        line = Line2D(
            [],
            [],
            color=FAINT,
            marker=".",
            linewidth=0.8,
            label="plans, as expected (before a softmax)",
        )
        marks = [mark("o", COLOURS[0], "whole networks, measured"), mark("D", COLOURS[1], "chosen")]
        legend(figure, [line, *marks])
    return figure


def importance(table: pd.DataFrame) -> Figure:
    """Importance of the parameters of the most tried algorithms; of an `importance_frame`."""
    names = list(dict.fromkeys(table["algorithm"]))[:3]
    worth = table[table["importance"] >= 0.01]
    shown = pd.concat([worth[worth["algorithm"] == name].head(6) for name in names])
    named = shown.rename(columns={"parameter": "layer"})
    title = "What matters to each algorithm"
    with layer_canvas(named, title, "per cent of the variance of log time") as (figure, axes):
        for y, row in enumerate(rows(shown)):
            axes.barh(y, 100 * row.importance, height=0.62, color=colour_of(row.algorithm))
            note(axes, 100 * row.importance, y, percent(row.importance))
        axes.set_xlim(0, 115 * top(shown["importance"], 0.1))
        legend_of_algorithms(figure, shown["algorithm"], "s")
    return figure


def outcomes(table: pd.DataFrame) -> Figure:
    """Failed trials by reason; of an `outcomes_frame`."""
    shown = table.head(12)
    with canvas("Failed trials", 1.0 + 0.42 * max(1, len(shown))) as (figure, axes):
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


def steps(table: pd.DataFrame, most: int = 24) -> Figure:
    """The times of the `most` longest steps of a network, in the network's order.

    `table` has the rows of `Executable.profile`.
    """
    shown = table.loc[table["seconds"].nlargest(most).sort_index().index]
    # Shorter labels: exporters name tensors by the path of modules, and of a schedule only the
    # algorithm is shown.
    labels = shown["output"].str.strip("/").str.removesuffix("_output_0")
    kinds = shown["algorithm"].str.replace(r"\(.*?\)| by \d+ rows", "", regex=True)
    shown = shown.assign(layer=labels, algorithm=kinds)
    title = f"{len(shown)} of {len(table)} steps, {percent(shown['share'].sum())} of the time"
    with layer_canvas(shown, title, "microseconds") as (figure, axes):
        for y, row in enumerate(rows(shown)):
            axes.barh(y, 1e6 * row.seconds, height=0.62, color=colour_of(row.algorithm))
            note(axes, 1e6 * row.seconds, y, percent(row.share))
        axes.set_xlim(0, 1.15e6 * top(shown["seconds"], 1e-9))
        legend_of_algorithms(figure, shown["algorithm"], "s")
    return figure
