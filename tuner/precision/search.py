"""Chooses a network's precision within a limit: plans of the front, validated as whole networks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.advised import Advised
from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.passes.products import densify
from fastrun.graph.passes.tabulate import tabulate
from fastrun.graph.plan.choices import Choose
from fastrun.graph.plan.form import Costs
from fastrun.graph.plan.plan import Plan
from fastrun.graph.plan.settled import settled
from fastrun.graph.planner import make_plan
from fastrun.graph.quantise.observe import Batch
from fastrun.graph.quantise.progress import Progress, silent
from fastrun.graph.quantise.sensitivity import Losses
from fastrun.graph.quantise.simulate import class_axis
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.rounding import roundings
from fastrun.kernels.core.whole_file import write_whole
from fastrun.tuner.measure.timing import Protocol, interleave
from fastrun.tuner.precision.front import Point, allowed_types, front
from fastrun.tuner.records.statistics import typical

Right = Callable[[Sequence[Array]], NDArray[np.bool_]]
"""Which examples are right, by the first output of the first batches, of all or fewer."""

VALIDATED = 6
"""So many plans between float32 and the fastest are validated as whole networks, at most."""

# The share of the time in which float32 computes as many examples as there is time for, and the
# least examples.
_JUDGING, _LEAST = 0.05, 50
_ROUNDS = 30
_PROTOCOL = Protocol(block=0.02)


@dataclass(frozen=True)
class Validated:
    """A plan of the front as a whole network.

    `expected_loss` and `expected_seconds` are those of the search, the loss before a softmax where
    one computes the outputs; `seconds` and `lost` were measured. `lost` is a share of the examples:
    with labels those that are right in float32 and wrong here, less those that are wrong there and
    right here; without labels those whose largest output is another one than in float32. Where an
    output has no classes, it is the `error`: the rms of the change of the outputs, relative to
    their rms. `layers` are in integers, of `of` that could be; `halves` are in float32 with
    products or weights of 16 bits.
    """

    expected_loss: float
    expected_seconds: float
    seconds: float
    lost: float
    error: float
    layers: int
    of: int
    halves: int = 0


@dataclass(frozen=True)
class Precision:
    """The chosen network and its plan, and what was validated, the fastest expected last.

    Float32 is the first; among the others are all layers that can be in 8 bits. `chosen` is the
    index of the fastest that keeps the limit. `labelled` says whether `lost` is a loss of accuracy
    or of agreement with float32. `types` are those of the chosen network's layers that are in
    float32 with 16 bits, by the names of their nodes: the plan's, since no ONNX file says them.
    """

    graph: Graph
    plan: Plan
    validated: Sequence[Validated]
    expected: Sequence[tuple[float, float]]
    chosen: int
    labelled: bool
    samples: int
    types: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        """The front as it is kept: seconds, shares and relative errors."""
        return {
            "network": self.graph.name,
            "samples": self.samples,
            "labelled": self.labelled,
            "chosen": self.chosen,
            "validated": [asdict(point) for point in self.validated],
            "expected": [{"loss": loss, "seconds": seconds} for loss, seconds in self.expected],
        }

    def save(self, path: Path) -> None:
        """Write the front as JSON, for `kept_front`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(self.document(), indent=1))


def choose_precision(
    advised: Advised,
    found: Losses,
    data: Sequence[Batch],
    right: Right | None,
    limit: float,
    choose: Choose,
    costs: Costs,
    cpu: Cpu,
    threads: int,
    progress: Progress = silent,
    ends: float = math.inf,
) -> Precision:
    """The fastest network within a limit of the loss, for a network that may be rounded.

    As `Validation`, `Validation.look_within` and `Validation.precision`.

    Raises:
        UnsupportedError: a node cannot be run.
        InputError: there are no examples.
    """
    validation = Validation(
        advised, found, data, right, choose, costs, cpu, threads, progress, ends
    )
    validation.look_within(limit, ends)
    return validation.precision(limit)


class Validation:
    """Whole networks of the front of a network that may be rounded, judged on examples.

    Float32, 8 bits wherever possible and the fastest plan are validated in any case. `right` says
    of first outputs which examples are right; without it float32 is the truth. The first of the
    data are judged, as many as there is time for until the moment `ends` of `time.monotonic`.

    Raises:
        UnsupportedError: a node cannot be run.
        InputError: there are no examples.
    """

    def __init__(
        self,
        advised: Advised,
        found: Losses,
        data: Sequence[Batch],
        right: Right | None,
        choose: Choose,
        costs: Costs,
        cpu: Cpu,
        threads: int,
        progress: Progress = silent,
        ends: float = math.inf,
    ) -> None:
        if not data:
            raise InputError("there are no examples to validate a precision: give some")
        self._progress = progress
        self._front = front(advised, found, choose, costs, roundings(math.inf, cpu), progress)
        self._points = [*self._front.points]
        self._judge = _Judge(advised, data, right, choose, costs, cpu, threads, ends)
        for point in (self._points[0], self._front.whole, self._points[-1]):
            self._look(point)

    def look_within(self, limit: float, ends: float = math.inf) -> None:
        """Validate plans between the last that keeps a limit and the first that does not.

        A plan that keeps it is followed by a faster one. Where the front has no plan between these
        two, another is looked for. Further plans are validated as long as that should end before
        the moment `ends` of `time.monotonic`.
        """
        points, judge = self._points, self._judge
        low, high = 0, len(points) - 1
        if judge.lost(points[-1]) <= limit:
            return
        for _ in range(VALIDATED):
            if high - low == 1 and (new := self._front.between(points[low], points[high])):
                points.insert(high, new)
                high += 1
            if high - low < 2 or not judge.has_time(ends):
                return
            middle = (low + high) // 2
            self._look(points[middle])
            low, high = (middle, high) if judge.lost(points[middle]) <= limit else (low, middle)

    def precision(self, limit: float) -> Precision:
        """All plans that were validated, timed in turns, and the fastest within a limit."""
        self._progress("whole networks timed in turns", 0, 1)
        return self._judge.precision(self._points, limit)

    def _look(self, point: Point) -> None:
        self._progress("whole networks validated", self._judge.count, VALIDATED + 3)
        self._judge.look(point)


def _count(batch: Batch) -> int:
    return int(next(iter(batch.values())).shape[0])


@dataclass(frozen=True)
class _Seen:
    """A plan that was looked at: its network, the share of examples lost, the rms error."""

    point: Point
    graph: Graph
    plan: Plan
    executable: Executable
    lost: float
    error: float


class _Judge:
    def __init__(
        self,
        advised: Advised,
        data: Sequence[Batch],
        right: Right | None,
        choose: Choose,
        costs: Costs,
        cpu: Cpu,
        threads: int,
        ends: float,
    ) -> None:
        self._advised, self._data, self._right = advised, data, right
        self._choose, self._costs, self._cpu, self._threads = choose, costs, cpu, threads
        self._ends = ends
        self._seen: dict[int, _Seen] = {}
        self._truth: list[Array] = []  # the outputs in float32
        self._longest = 0.0

    @property
    def count(self) -> int:
        """How many plans were looked at."""
        return len(self._seen)

    def has_time(self, ends: float) -> bool:
        """Whether one more plan can be looked at, and all be timed, until then."""
        timed = _ROUNDS * _PROTOCOL.block * (len(self._seen) + 1)
        return monotonic() + self._longest + 2 * timed < ends

    def look(self, point: Point) -> None:
        """Build a plan's network and compare its outputs with those of the first one."""
        if id(point) in self._seen:
            return
        begin = monotonic()
        exact = tabulate(densify(settled(self._advised, point.plan)))
        plan, made = make_plan(
            exact, self._choose, self._cpu, self._costs, self._threads,
            roundings(math.inf, self._cpu), allowed=allowed_types(point.types),
        )  # fmt: skip
        executable = Executable.of(made, self._cpu, self._threads, plan)
        first = exact.outputs[0]
        outputs, start, examples = list[Array](), monotonic(), 0
        time = math.inf if self._seen else _JUDGING * (self._ends - start)
        for batch in self._data:
            if examples >= _LEAST and monotonic() - start > time:
                break
            outputs.append(executable.run(batch)[first])
            examples += _count(batch)
        self._data = self._data[: len(outputs)]
        self._truth = self._truth or outputs
        # Outputs of all plans would fill the memory.
        lost, error = self._lost(outputs), self._error(outputs)
        self._seen[id(point)] = _Seen(point, exact, plan, executable, lost, error)
        self._longest = max(self._longest, monotonic() - begin)

    def lost(self, point: Point) -> float:
        """The share of examples lost against float32, the first plan that was looked at."""
        return self._seen[id(point)].lost

    def precision(self, points: Sequence[Point], limit: float) -> Precision:
        """Time all plans that were looked at, and choose one."""
        base, *others = self._seen.values()
        seen = [base, *sorted(others, key=lambda one: -one.point.seconds)]
        calls = [one.executable.seconds for one in seen]
        samples = [x.samples for x in interleave(calls, _ROUNDS, _PROTOCOL, 0)]
        of = max(one.point.layers for one in seen)
        validated = [
            Validated(
                one.point.loss, one.point.seconds, typical(times), one.lost,
                one.error, one.point.layers, of, len(one.point.types),
            )
            for one, times in zip(seen, samples, strict=True)
        ]  # fmt: skip
        keeping = [i for i, one in enumerate(validated) if one.lost <= limit]
        chosen = min(keeping, key=lambda i: validated[i].seconds)
        best = seen[chosen]
        expected = [(point.loss, point.seconds) for point in points]
        count = sum(_count(batch) for batch in self._data)
        labelled, types = self._right is not None, best.point.types
        return Precision(best.graph, best.plan, validated, expected, chosen, labelled, count, types)

    def _lost(self, found: Sequence[Array]) -> float:
        truth = self._truth
        if self._right:
            return share_lost(self._right(truth), self._right(found))
        if not has_classes(truth[0]):
            return self._error(found)
        return float((classes(truth) != classes(found)).mean())

    def _error(self, found: Sequence[Array]) -> float:
        change = sum(
            float(np.square(a - b, dtype=np.float64).sum())
            for a, b in zip(self._truth, found, strict=True)
        )
        size = sum(float(np.square(a, dtype=np.float64).sum()) for a in self._truth)
        return float(np.sqrt(change / max(size, 1e-30)))


def share_lost(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """The share of examples that are right in truth less those that are right as found.

    It is a number of examples by their number, so that 5 of 1,000 keep a limit of 0.5 %: the
    difference of two shares would be a little more.
    """
    return (int(truth.sum()) - int(found.sum())) / len(truth)


def has_classes(output: Array) -> bool:
    """Whether an output has several numbers of which the largest may name a class."""
    return output.ndim > 1 and output.shape[class_axis(output.ndim)] > 1


def classes(outputs: Sequence[Array]) -> NDArray[np.int64]:
    """The places of the largest values: along the channels, or along the last of three axes."""
    return np.concatenate([y.argmax(class_axis(y.ndim)).reshape(-1) for y in outputs])
