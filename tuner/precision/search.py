"""Chooses a network's precision within a limit: plans of the front, validated as whole networks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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
from fastrun.graph.plan.choices import Choose
from fastrun.graph.plan.forms import Costs
from fastrun.graph.plan.plan import Plan
from fastrun.graph.plan.settled import settled
from fastrun.graph.planner import make_plan
from fastrun.graph.quantise.network import Progress, silent
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.whole_file import write_whole
from fastrun.tuner.measure.timing import Protocol, interleave
from fastrun.tuner.precision.front import Point, front
from fastrun.tuner.precision.sensitivity import Batch, Losses
from fastrun.tuner.records.statistics import typical

VALIDATED = 6
"""So many plans between float32 and the fastest are validated as whole networks, at most."""

_ROUNDS = 30
_PROTOCOL = Protocol(block=0.02)


@dataclass(frozen=True)
class Validated:
    """A plan of the front as a whole network.

    `expected_loss` and `expected_seconds` are those of the search; `seconds` and `lost` were
    measured. `lost` is a share of the examples: with labels those that are right in float32 and
    wrong here, less those that are wrong there and right here; without labels those whose largest
    output is another one than in float32. `error` is the rms of the change of the outputs, relative
    to their rms. `layers` in integers, of `of` that could be.
    """

    expected_loss: float
    expected_seconds: float
    seconds: float
    lost: float
    error: float
    layers: int
    of: int


@dataclass(frozen=True)
class Precision:
    """The chosen network and its plan, and what was validated, the fastest expected last.

    Float32 is the first; among the others are all layers that can be in 8 bits. `chosen` is the
    index of the fastest that keeps the limit. `labelled` says whether `lost` is a loss of accuracy
    or of agreement with float32.
    """

    graph: Graph
    plan: Plan
    validated: Sequence[Validated]
    expected: Sequence[tuple[float, float]]
    chosen: int
    labelled: bool
    samples: int

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
    labels: NDArray[np.int64] | None,
    limit: float,
    choose: Choose,
    costs: Costs,
    cpu: Cpu,
    threads: int,
    progress: Progress = silent,
    ends: float = math.inf,
) -> Precision:
    """The fastest network within a limit of the loss, for a network that may be rounded.

    Float32, 8 bits wherever possible and the fastest plan are validated, and plans between them by
    bisection: a plan that keeps the limit is followed by a faster one. Where the front has no plan
    between the last that keeps it and the first that does not, another is looked for. Further
    plans are validated as long as that should end before the moment `ends` of `time.monotonic`.

    Raises:
        UnsupportedError: a node cannot be run.
        InputError: there are no examples, or not a label for each.
    """
    if not data:
        raise InputError("there are no examples to validate a precision: give some")
    if labels is not None and len(labels) != sum(_count(batch) for batch in data):
        raise InputError(f"{len(labels)} labels do not fit the examples: give one for each")
    plans = front(advised, found, choose, costs, progress)
    points = [*plans.points]
    judge = _Judge(advised, data, labels, choose, costs, cpu, threads)
    for i, point in enumerate((points[0], plans.whole, points[-1])):
        progress("whole networks validated", i, VALIDATED + 3)
        judge.look(point)
    low, high = 0, len(points) - 1
    if judge.lost(points[-1]) <= limit:
        low = high
    for turn in range(VALIDATED):
        if high - low == 1 and (new := plans.between(points[low], points[high])):
            points.insert(high, new)
            high += 1
        if high - low < 2 or not judge.has_time(ends):
            break
        middle = (low + high) // 2
        progress("whole networks validated", turn + 3, VALIDATED + 3)
        judge.look(points[middle])
        low, high = (middle, high) if judge.lost(points[middle]) <= limit else (low, middle)
    progress("whole networks timed in turns", 0, 1)
    return judge.precision(points, limit)


def _count(batch: Batch) -> int:
    return int(next(iter(batch.values())).shape[0])


class _Judge:
    def __init__(
        self,
        advised: Advised,
        data: Sequence[Batch],
        labels: NDArray[np.int64] | None,
        choose: Choose,
        costs: Costs,
        cpu: Cpu,
        threads: int,
    ) -> None:
        self._advised, self._data, self._labels = advised, data, labels
        self._choose, self._costs, self._cpu, self._threads = choose, costs, cpu, threads
        self._seen: dict[int, tuple[Point, Graph, Plan, Executable, list[Array]]] = {}
        self._longest = 0.0

    def has_time(self, ends: float) -> bool:
        """Whether one more plan can be looked at, and all be timed, until then."""
        timed = _ROUNDS * _PROTOCOL.block * (len(self._seen) + 1)
        return monotonic() + self._longest + 2 * timed < ends

    def look(self, point: Point) -> None:
        """Build a plan's network and compute its outputs of all examples."""
        if id(point) in self._seen:
            return
        begin = monotonic()
        exact = densify(settled(self._advised, point.plan))
        plan, made = make_plan(exact, self._choose, self._cpu, self._costs, self._threads)
        executable = Executable.of(made, self._cpu, self._threads, plan)
        first = exact.outputs[0]
        outputs = [executable.run(batch)[first] for batch in self._data]
        self._seen[id(point)] = point, exact, plan, executable, outputs
        self._longest = max(self._longest, monotonic() - begin)

    def lost(self, point: Point) -> float:
        """The share of examples lost against float32, the first plan that was looked at."""
        truth, found = self._base, self._seen[id(point)][4]
        one, other = (np.concatenate([_classes(y) for y in ys]) for ys in (truth, found))
        if self._labels is None:
            return float((one != other).mean())
        labels = self._labels.reshape(-1)
        return float((one == labels).mean() - (other == labels).mean())

    def precision(self, points: Sequence[Point], limit: float) -> Precision:
        """Time all plans that were looked at, and choose one."""
        base, *others = self._seen.values()
        seen = [base, *sorted(others, key=lambda s: -s[0].seconds)]
        calls = [executable.seconds for _, _, _, executable, _ in seen]
        samples = [x.samples for x in interleave(calls, _ROUNDS, _PROTOCOL, 0)]
        of = max(point.layers for point, *_ in seen)
        validated = [
            Validated(
                point.loss, point.seconds, typical(times), self.lost(point),
                self._error(outputs), point.layers, of,
            )
            for (point, _, _, _, outputs), times in zip(seen, samples, strict=True)
        ]  # fmt: skip
        keeping = [i for i, one in enumerate(validated) if one.lost <= limit]
        chosen = min(keeping, key=lambda i: validated[i].seconds)
        _, exact, plan, _, _ = seen[chosen]
        expected = [(point.loss, point.seconds) for point in points]
        count = sum(_count(batch) for batch in self._data)
        return Precision(exact, plan, validated, expected, chosen, self._labels is not None, count)

    @property
    def _base(self) -> list[Array]:
        return next(iter(self._seen.values()))[4]

    def _error(self, found: Sequence[Array]) -> float:
        change = sum(
            float(np.square(a - b, dtype=np.float64).sum())
            for a, b in zip(self._base, found, strict=True)
        )
        size = sum(float(np.square(a, dtype=np.float64).sum()) for a in self._base)
        return float(np.sqrt(change / max(size, 1e-30)))


def _classes(output: Array) -> NDArray[np.int64]:
    """The place of the largest value: along the channels, or along the last of three axes."""
    axis = 1 if output.ndim in (2, 4) else -1
    found: NDArray[np.int64] = output.argmax(axis).reshape(-1)
    return found
