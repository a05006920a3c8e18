"""The style of figures and their common parts.

The colours are Okabe and Ito's, which colour-blind readers can
distinguish; marks or words repeat their meaning. Figures are narrow enough for a telephone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import pandas as pd
from matplotlib.axes import Axes as Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D as Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fastrun.kernels.registry import templates

INK, FAINT, PAPER = "#1b1f24", "#8c959f", "#fefefe"
"""Colours of text and axes, of grid and helpers, of the background. A page may replace them."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a08800")
MARKS = ("o", "s", "^", "D", "v", "P", "X")

_WIDTH = 4.4  # inches: on a telephone a point of text is then about a point high
ROW = 0.26

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


class Figure(matplotlib.figure.Figure):
    """A figure that no window knows of. Jupyter shows it at twice a screen's resolution."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        picture = io.BytesIO()
        self.savefig(picture, dpi=200)
        width, height = self.get_size_inches()
        return picture.getvalue(), {"width": round(100 * width), "height": round(100 * height)}


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure at twice a screen's resolution.

    Raises:
        OSError: the file cannot be written.
    """
    figure.savefig(path, dpi=200)


def svg(figure: Figure) -> str:
    """The figure as an <svg> element for a page. Equal figures give equal text."""
    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


@contextmanager
def canvas(title: str, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of `height` inches with a title and one pair of axes."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        figure.suptitle(title, x=0.02, ha="left", fontsize=9.5, fontweight="bold")
        axes.tick_params(length=0)
        yield figure, axes


@contextmanager
def layer_canvas(best: pd.DataFrame, title: str, unit: str) -> Iterator[tuple[Figure, Axes]]:
    """A figure with a row for each layer, the first one on top."""
    with canvas(title, 1.25 + ROW * len(best)) as (figure, axes):
        yield figure, axes
        axes.set_yticks(range(len(best)), [short(label, 24) for label in best["layer"]])
        axes.set_ylim(len(best) - 0.4, -0.6)
        axes.set_xlabel(unit)


def note(axes: Axes, x: float, y: float, text: str) -> None:
    """Text right of the end of a bar; none if x is not finite."""
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


def top(values: pd.Series, least: float) -> float:
    """The largest of the values, at least `least`; `least` if all are missing."""
    largest = float(values.max())
    return max(least, largest) if math.isfinite(largest) else least


def short(text: str, limit: int) -> str:
    """The text, cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def mark(shape: str, colour: str, label: str, hollow: bool = False) -> Line2D:
    """A mark and its meaning, for a legend."""
    face = PAPER if hollow else colour
    return Line2D(
        [], [], marker=shape, color=colour, markerfacecolor=face, linestyle="", label=label,
        markeredgewidth=1.6 if shape == "|" else 1,
    )  # fmt: skip


def legend(figure: Figure, marks: Sequence[Line2D]) -> None:
    """A legend below the axes, in as many columns as there is room for."""
    if not marks:
        return
    words = sum(len(str(line.get_label())) + 5 for line in marks)
    columns = max(1, min(len(marks), 55 * len(marks) // words))
    figure.legend(
        handles=list(marks), loc="outside lower left", ncols=columns, handlelength=1.4,
        columnspacing=1.2, handletextpad=0.4, borderpad=0.1,
    )  # fmt: skip


def _place(algorithm: str) -> int:
    """The index of an algorithm's colour. Kernels in bands have that of their first part."""
    names = [t.name for t in templates().values() if not t.baseline]
    first = algorithm.partition(" + ")[0]
    return names.index(first) if first in names else len(names)


def colour_of(algorithm: str) -> str:
    """The colour of an algorithm, the same in all figures."""
    return COLOURS[_place(algorithm) % len(COLOURS)] if algorithm else FAINT


def mark_of(algorithm: str) -> str:
    """The mark of an algorithm, the same in all figures."""
    return MARKS[_place(algorithm) % len(MARKS)]


def legend_of_algorithms(
    figure: Figure, names: pd.Series, shape: str = "", further: Sequence[Line2D] = ()
) -> None:
    """A legend of the algorithms that occur; all marks have `shape` if it is given."""
    found = sorted({name for name in names if name}, key=_place)
    legend(figure, [*(mark(shape or mark_of(n), colour_of(n), n) for n in found), *further])


# The labels in each decade of a logarithmic axis; the key is the number of decades that the axis
# must stay below.
_STEPS = {
    0.8: (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0),
    2.3: (1.0, 2.0, 5.0),
    3.0: (1.0, 3.0),
    math.inf: (1.0,),
}


def plain_log(axes: Axes, which: str = "x") -> None:
    """Label a logarithmic axis with numbers such as 1, 2, 5, 10 instead of powers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = math.log10(high / low)
    steps = next(steps for most, steps in _STEPS.items() if decades < most)
    axis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
