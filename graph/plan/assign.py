"""Decides the form of each task, and so the layout of each tensor, by dynamic programming.

A state is the set of layouts in which each tensor that is still needed exists. A task in one of
its forms leads from one state to the next; that costs the task's own time and the time of the
moves that its inputs need. The `BEAM` cheapest states are kept after each task, so the result is
optimal as long as there are no more of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastrun.graph.core.model import Graph
from fastrun.graph.core.shapes import Shape4, shape4
from fastrun.graph.plan.form import Form, MoveCost
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.dtype import F32, U8
from fastrun.kernels.core.layout import NCHW, Layout

# States that are kept after a task.
BEAM = 64

# The layouts in which each tensor that is still needed exists, a bit for each pair of both. Sets of
# pairs took most of the time of loading a network.
Live = int


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


class _Moves:
    """The seconds of moves between the layouts of tensors, of which each pair has a bit."""

    def __init__(
        self, shapes: Mapping[str, Shape4], move: MoveCost, rounding: Mapping[str, float]
    ) -> None:
        self._shapes, self._move, self._rounding = shapes, move, rounding
        self._bits: dict[tuple[str, Layout], int] = {}
        self._pairs: list[tuple[str, Layout]] = []
        self._every: dict[str, Live] = defaultdict(int)  # bits of a tensor in all layouts
        self._seconds: dict[tuple[int, Live], float] = {}

    def bit(self, name: str, layout: Layout) -> int:
        """The bit of a tensor in a layout."""
        pair = name, layout
        if pair not in self._bits:
            self._bits[pair] = 1 << len(self._pairs)
            self._every[name] |= self._bits[pair]
            self._pairs.append(pair)
        return self._bits[pair]

    def every(self, names: Iterable[str]) -> Live:
        """The bits that these tensors have in any layout."""
        return sum(self._every[x] for x in {*names})

    def made(self, live: Live, wanted: Iterable[int]) -> tuple[Live, float]:
        """The layouts after the moves to those wanted, and the seconds that the moves take."""
        seconds = 0.0
        for bit in wanted:
            if not live & bit:
                there = live & self._every[self._pairs[bit.bit_length() - 1][0]]
                if (bit, there) not in self._seconds:
                    self._seconds[bit, there] = self._taken(bit, there)
                seconds += self._seconds[bit, there]
                live |= bit
        return live, seconds

    def _taken(self, bit: int, live: Live) -> float:
        """The seconds of the move to a layout from the nearest of those there are."""
        name, layout = self._pairs[bit.bit_length() - 1]
        shape = self._shapes[name]
        there = [self._pairs[i][1] for i in range(live.bit_length()) if live >> i & 1]
        # A single pixel has the same memory in every layout of its type.
        alike = shape[2:] == (1, 1) and any(x.dtype is layout.dtype for x in there)
        seconds = 0.0 if alike else min(self._move(shape, x, layout) for x in there)
        if layout.dtype is U8 and all(x.dtype is F32 for x in there):
            seconds += self._rounding.get(name, 0.0)
        return seconds


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
    moves = _Moves({x: shape4(graph.shape(x)) for x in names}, move, rounding)
    bit = moves.bit

    def ways(i: int, task: Task) -> Iterator[tuple[Form, list[int], Live]]:
        """The forms of a task, with the layouts that each needs, and those it makes."""
        kept = [x for x in written[task.output] if last_use.get(x, -1) > i]
        for form in forms[task.output]:
            wanted = [bit(*pair) for pair in zip(task.reads, form.reads, strict=True)]
            yield form, wanted, sum(bit(x, form.writes) for x in kept)

    todo = [[*ways(i, task)] for i, task in enumerate(tasks)]
    outputs = [bit(x, NCHW) for x in computed]
    states = [_State(0.0, sum(bit(x, NCHW) for x in inputs))]
    for i, task in enumerate(tasks):
        ended = moves.every(x for x in (*inputs, *task.reads) if last_use.get(x, -1) <= i)
        best: dict[Live, _State] = {}
        for state in states:
            for form, wanted, made in todo[i]:
                live, seconds = moves.made(state.live, wanted)
                live = live & ~ended | made
                total = state.seconds + seconds + form.seconds
                if live not in best or total < best[live].seconds:
                    best[live] = _State(total, live, form, state)
        states = sorted(best.values(), key=lambda s: s.seconds)[:BEAM]

    def whole(state: _State) -> float:
        return state.seconds + moves.made(state.live, outputs)[1]

    final = min(states, key=whole)
    chosen = zip(reversed(tasks), final.forms(), strict=True)
    return {task.output: form for task, form in chosen}, whole(final)
