"""Decides the form of each task, and so the layout of each tensor, by dynamic programming.

A state is the set of layouts in which each tensor that is still needed exists. A task in one of
its forms leads from one state to the next; that costs the task's own time and the time of the
moves that its inputs need. The `BEAM` cheapest states are kept after each task, so the result is
optimal as long as there are no more of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastrun.graph.core.model import Graph
from fastrun.graph.core.shapes import shape4
from fastrun.graph.plan.forms import Form, MoveCost
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.dtype import F32, U8
from fastrun.kernels.core.layout import NCHW, Layout

# States that are kept after a task.
BEAM = 64

# The layouts in which each tensor that is still needed exists.
Live = frozenset[tuple[str, Layout]]


@dataclass(frozen=True)
class _State:
    """The cheapest way found to a state: the last task's form, and the state before it."""

    seconds: float
    live: Live
    form: Form | None = None
    before: _State | None = None

    def forms(self) -> Iterator[Form]:
        """The forms on this way, from the last task's back to the first task's."""
        state: _State | None = self
        while state and state.form:
            yield state.form
            state = state.before


def assign(
    graph: Graph,
    tasks: Sequence[Task],
    forms: Mapping[str, Sequence[Form]],
    move: MoveCost,
    rounding: Mapping[str, float] = {},
) -> tuple[dict[str, Form], float]:
    """A form for every task, by the name of its output, and the expected seconds of all.

    `forms` has the possible forms by the same names. Inputs and outputs of the network are NCHW.
    A tensor that is moved from float32 to u8 costs its seconds of `rounding` more.
    """
    last_use = {x: i for i, task in enumerate(tasks) for x in task.reads}
    computed = [x for x in graph.outputs if graph.is_native(x)]
    last_use |= dict.fromkeys(computed, len(tasks))
    inputs = [x for x in graph.inputs if graph.is_native(x)]
    written = {task.output: list(filter(graph.is_native, task.node.outputs)) for task in tasks}
    names = {*inputs, *last_use, *(x for task in tasks for x in written[task.output])}
    shapes = {x: shape4(graph.shape(x)) for x in names}

    def moved(live: Live, wanted: Sequence[tuple[str, Layout]]) -> tuple[Live, float]:
        """The layouts after the moves to those wanted, and the seconds that the moves take."""
        seconds = 0.0
        for name, layout in wanted:
            if (name, layout) not in live:
                there = [x for n, x in live if n == name]
                # A single pixel has the same memory in every layout of its type.
                alike = shapes[name][2:] == (1, 1) and any(x.dtype is layout.dtype for x in there)
                if not alike:
                    seconds += min(move(shapes[name], x, layout) for x in there)
                if layout.dtype is U8 and all(x.dtype is F32 for x in there):
                    seconds += rounding.get(name, 0.0)
                live |= {(name, layout)}
        return live, seconds

    states = [_State(0.0, frozenset((x, NCHW) for x in inputs))]
    for i, task in enumerate(tasks):
        best: dict[Live, _State] = {}
        for state in states:
            for form in forms[task.output]:
                wanted = list(zip(task.reads, form.reads, strict=True))
                live, seconds = moved(state.live, wanted)
                live = frozenset(t for t in live if last_use.get(t[0], -1) > i)
                live |= {(x, form.writes) for x in written[task.output] if last_use.get(x, -1) > i}
                total = state.seconds + seconds + form.seconds
                if live not in best or total < best[live].seconds:
                    best[live] = _State(total, live, form, state)
        states = sorted(best.values(), key=lambda s: s.seconds)[:BEAM]
    outputs = [(x, NCHW) for x in computed]

    def whole(state: _State) -> float:
        return state.seconds + moved(state.live, outputs)[1]

    final = min(states, key=whole)
    chosen = zip(reversed(tasks), final.forms(), strict=True)
    return {task.output: form for task, form in chosen}, whole(final)
