"""A network's graph with the times of its nodes: as an ONNX file with notes, and as a drawing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import onnx

from fastrun.graph.core.model import Graph
from fastrun.graph.plan.tasks import Task, tasks
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.to_onnx.model import export_onnx
from fastrun.tuner.records.units import duration, percent


@dataclass
class TaskTimes:
    """What a task's steps took in a profile: seconds of its own work, and of moves of its result.

    `steps` are the rows of `Executable.profile` that did the work; none for a task that needs none.
    """

    task: Task
    steps: list[Mapping[str, Any]] = field(default_factory=list)
    moves: list[Mapping[str, Any]] = field(default_factory=list)
    behind: str = ""  # the output of the task whose kernel does this one as well

    @property
    def seconds(self) -> float:
        """Seconds of its own work."""
        return sum(float(row["seconds"]) for row in self.steps)

    @property
    def share(self) -> float:
        """Its share of the run, with the moves of its result."""
        return sum(float(row["share"]) for row in (*self.steps, *self.moves))

    @property
    def runs(self) -> str:
        """The kernel that does the work."""
        return str(self.steps[-1]["algorithm"]) if self.steps else ""


def task_times(
    graph: Graph, network: Executable, rows: Sequence[Mapping[str, Any]]
) -> list[TaskTimes]:
    """The times of the tasks of an optimised graph; `rows` are the network's profile."""
    found = {task.output: TaskTimes(task) for task in tasks(graph)}
    for step, row in zip(network.steps, rows, strict=True):
        if step.output not in found:
            continue  # an input that is moved, or a halo
        if step.work == "reorder":
            found[step.output].moves.append(row)
            continue
        found[step.output].steps.append(row)
        for other in step.forms.keys() - {step.output}:
            found[other].behind = step.output
    return list(found.values())


def annotated(graph: Graph, times: Sequence[TaskTimes]) -> onnx.ModelProto:
    """The optimised network as ONNX, with notes on its nodes that viewers such as Netron show.

    The keys are `fastrun.algorithm`, `fastrun.layouts`, `fastrun.microseconds`, `fastrun.share`,
    and `fastrun.moves` for what moves the result to other layouts. The file runs like any other.
    """
    nothing = {"fastrun.algorithm": "none: nothing has to be done"}
    notes = dict.fromkeys((node.output for node in graph.nodes), nothing)
    for one in times:
        values = {}
        if one.steps:
            values = {
                "algorithm": one.runs,
                "layouts": str(one.steps[-1]["layouts"]),
                "microseconds": f"{one.seconds * 1e6:.1f}",
                "share": percent(one.share),
            }
        elif one.behind:
            values["algorithm"] = f"in the kernel of {one.behind}"
        if one.moves:
            values["moves"] = ", ".join(
                f"{row['layouts']} in {float(row['seconds']) * 1e6:.1f} microseconds"
                for row in one.moves
            )
        own = {f"fastrun.{key}": text for key, text in values.items()}
        notes[one.task.output] = nothing | own
        inside = {"fastrun.algorithm": f"in the kernel of {one.task.output}"}
        notes |= {node.output: inside for node in one.task.before}
    return export_onnx(graph, {"fastrun": "optimised graph with measured times"}, notes)


_ROW, _LANE, _LEFT, _TOP = 22, 16, 24, 64  # pixels
_BAR, _TIME, _TEXT = 120, 70, 330  # of bars, of times, of names
_WIDTH = 1180  # to the right of the lanes
_INK, _FAINT, _LINE = "#1f2430", "#6b7280", "#9aa4b2"

_KINDS = (
    ("convolution", "#2f6fdf", ("Conv", "DepthwiseVolume", "ConvTranspose")),
    ("dense, product", "#7a4fd0", ("Gemm", "MatMul")),
    ("pool, reduction", "#2f9e6e", ("Pool", "Reduce", "Softmax", "LRN")),
    ("elementwise", "#d98a1f", ("Binary", "Unary", "Clip", "Affine", "BatchNorm")),
    ("NumPy", "#1f2430", ("Numpy",)),
    ("data moved", "#c2473d", ()),
)
"""Kinds of tasks, their colours and operators; the last has all others."""


def drawing(graph: Graph, times: Sequence[TaskTimes], title: str, seconds: float) -> str:
    """The graph as an SVG: a line for each task in the order of running, with its time.

    Tensors are lines that run down from the task that computes them to those that read them.
    """
    lanes = _Lanes(graph, [one.task for one in times])
    left = _LEFT + _LANE * lanes.count + 12
    height, width = _TOP + _ROW * (len(times) + 1) + 30, left + _WIDTH
    most = max((one.share for one in times), default=0.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 26, f"{title}: {duration(seconds)}", _INK, 'font-size="16"'),
        *_legend(_LEFT, 48),
        *lanes.lines(),
    ]
    for i, one in enumerate(times):
        x, y = lanes.point(i)
        colour = _colour(one.task)
        radius = 3 + 5 * (one.share / most) ** 0.5
        parts.append(f'<circle cx="{x}" cy="{y}" r="{radius:.1f}" fill="{colour}"/>')
        parts += _columns(one, left, y, colour, most)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _columns(one: TaskTimes, left: int, y: int, colour: str, most: float) -> Iterator[str]:
    """A task's bar, time, name and kernel."""
    length = _BAR * one.share / most
    yield f'<rect x="{left}" y="{y - 6}" width="{length:.1f}" height="12" fill="{colour}"/>'
    time = duration(one.seconds) if one.steps else ""
    yield _text(left + _BAR + _TIME, y + 4, time, _INK, 'text-anchor="end"')
    node, start = one.task.node, left + _BAR + _TIME + 14
    sizes = f"{_short(node.name, 28)}  {node.work}"
    yield _text(start, y + 4, _short(sizes, 52), _INK)
    kernel = one.runs or (f"in the kernel of {one.behind}" if one.behind else "no work")
    moved = sum(float(row["seconds"]) for row in one.moves)
    what = f"{one.steps[-1]['layouts']}  {kernel}" if one.steps else kernel
    moves = f"; moved for {duration(moved)}" if one.moves else ""
    full = f"<title>{escape(node.name)}: {escape(what + moves)}</title>"
    yield f"<g>{full}{_text(start + _TEXT, y + 4, _short(what, 84) + moves, _FAINT)}</g>"


class _Lanes:
    """Each tensor has a lane, from the task that computes it to the last that reads it."""

    def __init__(self, graph: Graph, all_tasks: Sequence[Task]) -> None:
        self._tasks = all_tasks
        computed = dict.fromkeys(graph.inputs, -1)
        computed |= {task.output: i for i, task in enumerate(all_tasks)}
        last = {x: i for i, task in enumerate(all_tasks) for x in task.reads}
        last |= dict.fromkeys((x for x in graph.outputs if x in computed), len(all_tasks))
        self._rows, self._last = computed, last
        self._of: dict[str, int] = {}
        free: list[int] = []
        self.count = 0

        def take() -> int:
            if free:
                free.sort()
                return free.pop(0)
            self.count += 1
            return self.count - 1

        for name in graph.inputs:
            self._of[name] = take()
        for i, task in enumerate(all_tasks):
            # The result goes on in the lane of the first operand that ends here.
            free += [self._of[x] for x in dict.fromkeys(task.reads) if last[x] == i]
            ended = [self._of[x] for x in task.reads if last[x] == i]
            if ended:
                free.remove(ended[0])
                self._of[task.output] = ended[0]
            else:
                self._of[task.output] = take()
            if task.output not in last:
                free.append(self._of[task.output])

    def point(self, row: int) -> tuple[int, int]:
        """Where a task is drawn."""
        return _x(self._of[self._tasks[row].output]), _y(row)

    def lines(self) -> Iterator[str]:
        """The lines of all tensors."""
        for name, row in self._rows.items():
            x, top, end = _x(self._of[name]), _y(row), self._last.get(name, row)
            readers = [i for i, task in enumerate(self._tasks) if name in task.reads]
            straight = [i for i in readers if _x(self._of[self._tasks[i].output]) == x]
            stop = len(self._tasks) if end == len(self._tasks) else max(straight, default=row)
            bends = [i for i in readers if i not in straight]
            stop = max([stop, *(i - 1 for i in bends)])
            path = f"M{x} {top}V{_y(stop)}"
            for i in bends:
                to = _x(self._of[self._tasks[i].output])
                path += f"M{x} {_y(i - 1)}C{x} {_y(i) - 6} {to} {_y(i - 1) + 6} {to} {_y(i)}"
            yield f'<path d="{path}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>'


def _x(lane: int) -> int:
    return _LEFT + _LANE * lane + 8


def _y(row: int) -> int:
    return _TOP + _ROW * (row + 1)


def _kind(task: Task) -> int:
    name = type(task.node.op).__name__
    return next((i for i, kind in enumerate(_KINDS) if name in kind[2]), len(_KINDS) - 1)


def _colour(task: Task) -> str:
    return _KINDS[_kind(task)][1]


def _legend(x: int, y: int) -> Iterator[str]:
    for name, colour, _ in _KINDS:
        yield f'<circle cx="{x + 5}" cy="{y - 4}" r="5" fill="{colour}"/>'
        yield _text(x + 15, y, name, _FAINT)
        x += 40 + 7 * len(name)


def _text(x: float, y: float, text: str, colour: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" {more}>{escape(text)}</text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"
