"""Figures of measurements, in one look. The only file that imports matplotlib.

Every function takes a table of `tuner.frames` and returns a Figure that no window knows of. Layers
go down the page in the network's order. Colours are Okabe and Ito's, which the colour-blind tell
apart; where they mean something, so do marks or words. Figures are narrow enough for a telephone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from kernels.core.template import templates
from tuner.standing import PRACTICAL
from tuner.units import ms, percent, ratio

INK, FAINT, PAPER = "#1b1f24", "#8c959f", "#fefefe"
"""Text and axes, grid and helpers, background: a page may replace them by its own."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a08800")
MARKS = ("o", "s", "^", "D", "v", "P", "X")

_WIDTH = 4.4  # inches: on a telephone a point of text is then about a point high
_ROW = 0.26

_VERDICTS = {"heuristic": "the heuristic is best"}

_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "fastrun",
}


def over_naive(best: pd.DataFrame) -> Figure:
    """How many times faster than the naive loop each layer is; a `best_frame`."""
    with _layers(best, "Faster than the naive loop", "times, logarithmic") as (figure, axes):
        axes.set_xscale("log")
        for y, row in enumerate(_rows(best)):
            colour = _colour(row.algorithm)
            axes.barh(y, row.speedup_naive - 1, left=1, height=0.62, color=colour)
            _note(axes, row.speedup_naive, y, ratio(row.speedup_naive))
        axes.set_xlim(1, _top(best["speedup_naive"], 2) * 2.2)
        _plain_log(axes)
        _legend_of_algorithms(figure, best["algorithm"], "s")
    return figure


def over_heuristic(best: pd.DataFrame) -> Figure:
    """How many times faster than the heuristic each layer is, with 95 % intervals."""
    title = "Faster than the heuristic, by tuning alone"
    with _layers(best, title, "times, with 95 % interval") as (figure, axes):
        axes.axvspan(1 / PRACTICAL, PRACTICAL, color=FAINT, alpha=0.25, linewidth=0)
        axes.axvline(1, color=INK, linewidth=0.8)
        for y, row in enumerate(_rows(best)):
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
            _note(axes, end, y, words)
        low = min(0.95, best[["low", "speedup_heuristic"]].min().min() - 0.02)
        high = _top(best[["high", "speedup_heuristic"]].max(axis=1), 1.1)
        if high > 3:
            axes.set_xscale("log")
            axes.set_xlim(low, high * 1.6)
            _plain_log(axes)
        else:
            axes.set_xlim(low, high + 0.28 * (high - low))
        marks = [
            _mark("o", COLOURS[0], "faster: the interval clears 3 %"),
            _mark("o", FAINT, "not surely faster", hollow=True),
        ]
        _legend(figure, marks)
    return figure


def share_of_peak(best: pd.DataFrame, peak: float) -> Figure:
    """What share of `peak` (FLOP/s) each layer reaches, and what the heuristic did."""
    title = f"Share of the measured peak, {peak / 1e9:.0f} GFLOP/s"
    with _layers(best, title, "per cent of peak") as (figure, axes):
        for y, row in enumerate(_rows(best)):
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
            _note(axes, max(100, scale / row.p10), y, percent(row.share))
        axes.axvline(100, color=INK, linewidth=1.4)
        above = _top(best["share"], 0) > 1
        axes.set_xlim(0, 116 * _top(best["share"], 1) if above else 116)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        marks = [
            _mark("|", INK, "heuristic"),
            Line2D([], [], color=INK, linewidth=1, label="80 % of samples"),
            Line2D([], [], color=INK, linewidth=1.6, label="peak"),
        ]
        _legend_of_algorithms(figure, best["algorithm"], "s", marks)
    return figure


def time_per_layer(best: pd.DataFrame) -> Figure:
    """Where the network's time goes: all occurrences of each layer, heuristic and best."""
    title = "Where the time goes"
    with _layers(best, title, "ms in the whole network") as (figure, axes):
        for y, row in enumerate(_rows(best)):
            before, after = 1e3 * row.count * row.heuristic, 1e3 * row.count * row.best
            axes.plot([after, before], [y, y], color=FAINT, linewidth=1.6)
            axes.plot(before, y, "o", color=FAINT, markersize=5.5, markerfacecolor=PAPER)
            axes.plot(after, y, "o", color=COLOURS[0], markersize=5.5)
            words = (
                ms(after / 1e3) if after == before else f"{ms(before / 1e3)} → {ms(after / 1e3)}"
            )
            words += f" ({row.count}x)" if row.count > 1 else ""
            _note(axes, max(before, after) if before == before else after, y, words)
        longest = best["count"] * best[["heuristic", "best"]].max(axis=1)
        axes.set_xlim(0, 1.5e3 * _top(longest, 1e-6))
        marks = [_mark("o", FAINT, "heuristic", hollow=True), _mark("o", COLOURS[0], "best")]
        _legend(figure, marks)
    return figure


def convergence(table: pd.DataFrame) -> Figure:
    """How the best so far falls over the trials; a `convergence_frame`."""
    with _figure("How the search went", 3.0) as (figure, axes):
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
        _legend(figure, lines)
    return figure


def algorithms(table: pd.DataFrame, best: pd.DataFrame) -> Figure:
    """The best of each algorithm against the layer's winner; an `algorithms_frame`."""
    title = "The best of each algorithm"
    with _layers(best, title, "times as long as the winner, logarithmic") as (figure, axes):
        axes.set_xscale("log")
        tried = table[~table["baseline"]]
        winners = tried.groupby("problem")["best"].min()
        largest = 1.0
        for y, problem in enumerate(best["problem"]):
            # The winner last, so that nothing hides it.
            of_layer = tried[tried["problem"] == problem].sort_values("best", ascending=False)
            for row in _rows(of_layer):
                slower = row.best / winners[problem]
                largest = max(largest, slower)
                axes.plot(
                    slower, y, _shape(row.algorithm), color=_colour(row.algorithm),
                    markersize=6, markeredgecolor=PAPER, markeredgewidth=0.5, clip_on=False,
                )  # fmt: skip
        axes.set_xlim(0.93, max(2.0, largest * 1.1))
        _plain_log(axes)
        _legend_of_algorithms(figure, tried["algorithm"])
    return figure


def pareto(table: pd.DataFrame) -> Figure:
    """What less workspace and a smaller error cost in time; a `pareto_frame`."""
    with _figure("Time, workspace, error", 5.2) as (figure, first):
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
                ordered = group.sort_values("x")
                axes.plot(ordered["x"], ordered["slower"], color=FAINT, linewidth=0.6, alpha=0.6)
                for row in _rows(group):
                    axes.plot(
                        row.x, row.slower, _shape(row.algorithm), color=_colour(row.algorithm),
                        markersize=5, markeredgecolor=PAPER, markeredgewidth=0.5, clip_on=False,
                    )  # fmt: skip
            axes.set_ylabel("times as long as the fastest")
            axes.xaxis.set_minor_locator(NullLocator())
        upper.set_ylim(0.95, 1.15 * _top(table["slower"], 1.5))
        _plain_log(upper, "y")
        upper.set_xlim(0.4, 2 * _top(kibibytes, 1))
        upper.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else "")
        )
        upper.set_xlabel("workspace, KiB (far left: none)")
        lower.set_xlabel("rms error over the output's")
        _legend_of_algorithms(figure, table["algorithm"])
    return figure


def outcomes(table: pd.DataFrame) -> Figure:
    """Trials that came to nothing, by reason; an `outcomes_frame`."""
    shown = table.head(12)
    with _figure("Trials that came to nothing", 1.0 + 0.42 * max(1, len(shown))) as (figure, axes):
        for y, row in enumerate(_rows(shown)):
            axes.barh(y, row.count, height=0.4, color=COLOURS[1])
            _note(axes, row.count, y, str(row.count))
            axes.text(
                0, y - 0.36, _short(f"{row.outcome}: {row.reason}", 66), fontsize=7.5, va="center"
            )
        axes.set_ylim(max(1, len(shown)) - 0.6, -0.8)
        axes.set_yticks([])
        axes.set_xlim(0, 1.15 * _top(shown["count"], 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("trials")
    return figure


def roofline(best: pd.DataFrame, peak: float, read: Mapping[str, float]) -> Figure:
    """Each layer's rate against what `peak` (FLOP/s) and `read` (level -> bytes/s) allow."""
    with _figure(f"Roofline, peak {peak / 1e9:.0f} GFLOP/s", 3.4) as (figure, axes):
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
        for row in _rows(best[best["algorithm"] != ""]):
            axes.plot(
                row.intensity, row.gflops, _shape(row.algorithm), color=_colour(row.algorithm),
                markersize=6, markeredgecolor=PAPER, markeredgewidth=0.5,
            )  # fmt: skip
        axes.set_xlim(low, high)
        rates = best["gflops"].dropna()
        axes.set_ylim(0.6 * min([peak / 1e9, *rates]), 1.6 * max([peak / 1e9, *rates]))
        axes.set_xlabel("FLOP per byte, every tensor moved once")
        axes.set_ylabel("GFLOP/s")
        _plain_log(axes, "x")
        _plain_log(axes, "y")
        _legend_of_algorithms(figure, best["algorithm"])
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure at twice a screen's resolution.

    Raises:
        OSError: the file cannot be written.
    """
    figure.savefig(path, dpi=200)


def svg(figure: Figure) -> str:
    """The figure as an <svg> element, the same for the same figure, to stand in a page."""
    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


@contextmanager
def _figure(title: str, height: float) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        figure.suptitle(title, x=0.02, ha="left", fontsize=9.5, fontweight="bold")
        axes.tick_params(length=0)
        yield figure, axes


@contextmanager
def _layers(best: pd.DataFrame, title: str, unit: str) -> Iterator[tuple[Figure, Axes]]:
    """A figure with a row for each layer, the first on top."""
    with _figure(title, 1.25 + _ROW * len(best)) as (figure, axes):
        yield figure, axes
        axes.set_yticks(range(len(best)), [_short(label, 24) for label in best["layer"]])
        axes.set_ylim(len(best) - 0.4, -0.6)
        axes.set_xlabel(unit)


def _rows(table: pd.DataFrame) -> list[Any]:
    """The rows, a column an attribute."""
    return list(table.itertuples(index=False))


def _note(axes: Axes, x: float, y: float, text: str) -> None:
    """Words right of the end of a bar; none where nothing was measured."""
    if math.isfinite(x):
        axes.annotate(
            text,
            (x, y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8},
        )


def _top(values: pd.Series, least: float) -> float:
    """The largest of the values, at least `least`; that where all are missing."""
    largest = float(values.max())
    return max(least, largest) if math.isfinite(largest) else least


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _place(algorithm: str) -> int:
    names = [t.name for t in templates().values() if not t.baseline]
    return names.index(algorithm) if algorithm in names else len(names)


def _colour(algorithm: str) -> str:
    return COLOURS[_place(algorithm) % len(COLOURS)] if algorithm else FAINT


def _shape(algorithm: str) -> str:
    return MARKS[_place(algorithm) % len(MARKS)]


def _mark(shape: str, colour: str, label: str, hollow: bool = False) -> Line2D:
    face = PAPER if hollow else colour
    return Line2D(
        [], [], marker=shape, color=colour, markerfacecolor=face, linestyle="", label=label,
        markeredgewidth=1.6 if shape == "|" else 1,
    )  # fmt: skip


def _legend_of_algorithms(
    figure: Figure, names: pd.Series, shape: str = "", further: Sequence[Line2D] = ()
) -> None:
    """Colours and marks of the algorithms that occur; all of one shape if that is given."""
    found = sorted({name for name in names if name}, key=_place)
    _legend(figure, [*(_mark(shape or _shape(n), _colour(n), n) for n in found), *further])


def _legend(figure: Figure, marks: Sequence[Line2D]) -> None:
    if not marks:
        return
    words = sum(len(str(mark.get_label())) + 5 for mark in marks)
    columns = max(1, min(len(marks), 55 * len(marks) // words))
    figure.legend(
        handles=list(marks), loc="outside lower left", ncols=columns, handlelength=1.4,
        columnspacing=1.2, handletextpad=0.4, borderpad=0.1,
    )  # fmt: skip


def _plain_log(axes: Axes, which: str = "x") -> None:
    """A logarithmic axis with numbers such as 1, 2, 5, 10 instead of powers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = math.log10(high / low)
    steps = (1.0, 2.0, 5.0) if decades > 0.8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=steps if decades < 3 else (1.0,), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
