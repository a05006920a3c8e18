"""Which layout each tensor gets: dynamic programming over the tasks in their order.

A state says in which layouts every tensor that is still needed exists. A task in one of its
forms makes a state from a state and costs its own time and that of the moves its inputs need.
The cheapest states are kept, which is exact as long as there are no more of them than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastrun.graph.core.model import Graph
from fastrun.graph.core.shapes import shape4
from fastrun.graph.plan.forms import Form, MoveCost
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.layout import NCHW, Layout

# States that survive a task.
BEAM = 64

# Layouts in which live tensors exist.
Live = frozenset[tuple[str, Layout]]


@dataclass(frozen=True)
class _State:
    """The cheapest way found to a state: the last task's form and the state before."""

    seconds: float
    live: Live
    form: Form | None = None
    before: _State | None = None

    def forms(self) -> Iterator[Form]:
        """From the last task's back to the first."""
        state: _State | None = self
        while state and state.form:
            yield state.form
            state = state.before


def assign(
    graph: Graph, tasks: Sequence[Task], forms: Mapping[str, Sequence[Form]], move: MoveCost
) -> tuple[dict[str, Form], float]:
    """A form for every task, by the name of its output, and the seconds they should take in all.

    `forms` has the candidates by the same names. Inputs and outputs of the network are NCHW.
    """
    last_use = {x: i for i, task in enumerate(tasks) for x in task.reads}
    computed = [x for x in graph.outputs if x not in graph.constants]
    last_use |= dict.fromkeys(computed, len(tasks))
    shapes = {x: shape4(graph.shape(x)) for task in tasks for x in (*task.reads, task.output)}
    shapes |= {x: shape4(graph.shape(x)) for x in graph.inputs}

    def moved(live: Live, wanted: Sequence[tuple[str, Layout]]) -> tuple[Live, float]:
        """With the tensors wanted brought into their layouts, and the seconds that takes."""
        seconds = 0.0
        for name, layout in wanted:
            if (name, layout) not in live:
                there = [x for n, x in live if n == name]
                # Single pixels lie alike in every layout.
                if shapes[name][2:] != (1, 1):
                    seconds += min(move(shapes[name], x, layout) for x in there)
                live |= {(name, layout)}
        return live, seconds

    states = [_State(0.0, frozenset((x, NCHW) for x in graph.inputs))]
    for i, task in enumerate(tasks):
        best: dict[Live, _State] = {}
        for state in states:
            for form in forms[task.output]:
                wanted = list(zip(task.reads, form.reads, strict=True))
                live, seconds = moved(state.live, wanted)
                live = frozenset(t for t in live if last_use.get(t[0], -1) > i)
                if last_use.get(task.output, -1) > i:
                    live |= {(task.output, form.writes)}
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
