"""How long a schedule should take, learnt from the records of other problems and processors.

The model says how many times longer a schedule takes than its operations at the peak of a nominal
processor with so many lanes. Boosted trees learn the logarithm of that from the features of
problem, schedule and processor. A schedule's record weighs less the slower it is than the fastest
of its problem: it matters which of the good ones is best, not how bad a bad one is.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import KernelTemplate, ScheduleError
from fastrun.kernels.registry import applicable, parse_schedule
from fastrun.search_spaces.space import space_for
from fastrun.search_spaces.untried import Untried
from fastrun.tuner.model.features import ALGORITHMS, NAMES, rows
from fastrun.tuner.model.trees import Growth, Trees
from fastrun.tuner.records.record import Record

Floats = NDArray[np.floating[Any]]

SHIPPED = Path(__file__).with_name("trained.npz")
"""The model that comes with the package."""

# Operations per second and lane at the nominal peak: two multiply-adds a cycle at 3 GHz.
_PEAK = 4 * 3e9

# A schedule that is twice as slow as the best of its problem weighs a quarter.
_FADES = 2.0

# Proposals are sought among this many random schedules of an algorithm...
_SAMPLE = 150

# ... of so many algorithms, and then downhill from the best few, for a few steps.
_ALGORITHMS = 3
_STARTS = 3
_STEPS = 8

# A schedule is proposed instead of the heuristic's if it should be faster by this share.
MARGIN = 0.06


@dataclass(frozen=True)
class Times:
    """Measured schedules of one problem on one processor: texts, and seconds per call."""

    problem: ConvProblem
    cpu: Cpu
    schedules: Sequence[str]
    seconds: Sequence[float]

    @functools.cached_property
    def rows(self) -> Floats:
        """The features of the schedules."""
        return rows(self.problem, map(_parsed, self.schedules), self.cpu)


def times(records: Iterable[Record], cpus: Sequence[Cpu]) -> list[Times]:
    """What records of these processors say, by problem and processor, on one thread in f32.

    The newest record of the highest stage says how long a schedule takes. Left out are baselines,
    failures, schedules with other fields than today's, and those that were called once, which may
    have been a cold call.
    """
    known = {cpu.fingerprint: cpu for cpu in cpus}
    found: defaultdict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda r: (not r.screened, r.time)):
        usable = len(record.samples) > 1 and record.threads == 1 and record.machine in known
        if usable and _has_features(record.schedule):
            found[record.problem, record.machine][record.schedule] = record
    parsed = {text: ConvProblem.parse(text) for text, _ in found}
    return [
        Times(parsed[text], known[machine], [*group], [r.seconds_per_call for r in group.values()])
        for (text, machine), group in found.items()
        if not parsed[text].types
    ]


@dataclass(frozen=True)
class CostModel:
    """Expected seconds of schedules of float32 convolutions on one thread, with hot caches."""

    trees: Trees

    @classmethod
    def learnt(cls, data: Sequence[Times], growth: Growth | None = None) -> Self:
        """A model of these times."""
        x = np.concatenate([group.rows for group in data])
        values, weights = [], []
        for group in data:
            logs = np.log(group.seconds) - _nominal(group.problem, group.cpu)
            values.append(logs)
            weights.append(np.exp(-_FADES * (logs - logs.min())))
        return cls(Trees.grown(x, np.concatenate(values), np.concatenate(weights), growth))

    @classmethod
    @functools.cache
    def shipped(cls) -> CostModel:
        """The model that comes with the package."""
        return cls.load(SHIPPED)

    def save(self, path: Path) -> None:
        """Write the model to a file of NumPy arrays."""
        with path.open("wb") as file:
            arrays: dict[str, Any] = self.trees.arrays()
            np.savez_compressed(file, names=np.array(NAMES), **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds a model of other features than today's.
        """
        with np.load(path, allow_pickle=False) as found:
            if tuple(found["names"]) != NAMES:
                raise ValueError(f"{path.name} is a model of other features: learn it again")
            return cls(Trees.of_arrays(found))

    def seconds(self, p: ConvProblem, schedules: Sequence[str], cpu: Cpu) -> Floats:
        """Expected seconds per call of schedules, given by their texts."""
        return self._seconds(p, [_parsed(text) for text in schedules], cpu)

    def proposals(
        self, p: ConvProblem, cpu: Cpu, most: int = 8, seed: int = 0, layout: str = ""
    ) -> list[str]:
        """Schedules for `p` that should be fastest, the best first; none for other types than f32.

        The heuristics' schedules compete with a sample of each algorithm's space, and the best
        continue to their neighbours. With `layout` all have this layout.
        """
        if p.types:
            return []
        known = _Pool(self, p, cpu, layout)
        templates = [t for t in applicable(p, cpu) if t.name in ALGORITHMS and known.has(t)]
        templates.sort(key=lambda t: t.rank(p, cpu), reverse=True)
        known.add((t, s) for t in templates if known.fits(s := t.heuristic(p, cpu)))
        for template in templates[:_ALGORITHMS]:
            known.add((template, s) for s in known.space(template, seed).sample(_SAMPLE))
        for _ in range(_STEPS):
            starts = [key for key in known.best(_STARTS) if key not in known.explored]
            if not starts:
                break
            for template, schedule in starts:
                known.explored.add((template, schedule))
                near = known.space(template, seed).neighbours(schedule)
                known.add((template, s) for s in near)
        return [template.text(schedule) for template, schedule in known.best(most)]

    def choice(self, p: ConvProblem, cpu: Cpu, heuristic: str) -> str:
        """The schedule to run without any measurement: the heuristic's unless a gain is expected.

        `heuristic` is the text of that schedule.
        """
        proposed = self.proposals(p, cpu, 1)
        if not proposed or not _has_features(heuristic):
            return heuristic
        ours, theirs = self.seconds(p, [proposed[0], heuristic], cpu)
        return proposed[0] if (1 + MARGIN) * ours < theirs else heuristic

    def _seconds(self, p: ConvProblem, schedules: Sequence[tuple[str, Any]], cpu: Cpu) -> Floats:
        return np.exp(self.trees(rows(p, schedules, cpu)) + _nominal(p, cpu))


@functools.lru_cache(2048)
def shipped_proposals(p: Problem, cpu: Cpu, most: int) -> Sequence[str]:
    """The proposals of the model that comes with the package; none for attention."""
    if not isinstance(p, ConvProblem):
        return []
    return CostModel.shipped().proposals(p, cpu, most)


class _Pool:
    """The schedules of a problem whose expected seconds are known."""

    def __init__(self, model: CostModel, p: ConvProblem, cpu: Cpu, layout: str) -> None:
        self._model, self._p, self._cpu, self._layout = model, p, cpu, layout
        self._expected: dict[tuple[KernelTemplate, Any], float] = {}
        self._spaces: dict[str, Untried] = {}
        self.explored: set[tuple[KernelTemplate, Any]] = set()

    def space(self, template: KernelTemplate, seed: int) -> Untried:
        if template.name not in self._spaces:
            space = space_for(template.name, self._p, self._cpu)
            if self._layout:
                space = space.pinned(f"{template.name}(layout={self._layout})")
            self._spaces[template.name] = Untried(space, seed)
        return self._spaces[template.name]

    def has(self, template: KernelTemplate) -> bool:
        """Whether the algorithm has schedules of the layout."""
        layouts = space_for(template.name, self._p, self._cpu).domains["layout"]
        return not self._layout or self._layout in layouts

    def fits(self, schedule: Any) -> bool:
        """Whether a schedule has the layout."""
        return not self._layout or schedule.layout == self._layout

    def add(self, found: Iterable[tuple[KernelTemplate, Any]]) -> None:
        new = [key for key in dict.fromkeys(found) if key not in self._expected]
        if new:
            pairs = [(template.name, schedule) for template, schedule in new]
            expected = self._model._seconds(self._p, pairs, self._cpu)
            self._expected.update(zip(new, expected, strict=True))

    def best(self, most: int) -> list[tuple[KernelTemplate, Any]]:
        ordered = sorted(self._expected, key=self._expected.__getitem__)
        return list(islice(ordered, most))


def _nominal(p: ConvProblem, cpu: Cpu) -> float:
    """The logarithm of the seconds of a problem's operations at the nominal peak."""
    return math.log(p.flops / (_PEAK * cpu.lanes))


def _parsed(text: str) -> tuple[str, Any]:
    template, schedule = parse_schedule(text)
    return template.name, schedule


def _has_features(text: str) -> bool:
    try:
        return _parsed(text)[0] in ALGORITHMS
    except ScheduleError:
        return False
