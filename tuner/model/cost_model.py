"""Which schedules of a problem should be fast, learnt from the records of other problems.

Boosted trees learn the logarithm of a schedule's time from the features of problem, schedule and
processor, as far as it differs between schedules that were measured together: how fast the machine
was that day explains nothing. A schedule's record weighs less the slower it is than the fastest
beside it: it matters which of the good ones is best, not how bad a bad one is.

Several models learn, each with other weights of the problems (Rubin, "The Bayesian bootstrap",
Annals of Statistics, 1981). Where they disagree about a schedule, too little like it was measured,
and the heuristic's runs instead.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
from fastrun.tuner.model.rates import nearest
from fastrun.tuner.model.trees import Growth, Trees
from fastrun.tuner.records.record import Record

Floats = NDArray[np.floating[Any]]

SHIPPED = Path(__file__).parent
"""The folder of the models that come with the package: a file for each machine of `rates.MET`."""

# A schedule that is twice as slow as the best beside it weighs a quarter.
_FADES = 2.0

# Models that learn with other weights, and how each grows.
_MEMBERS = 3
_GROWTH = Growth(trees=200, rate=0.25)

# Proposals are sought among this many random schedules of an algorithm...
_SAMPLE = 150

# ... of so many algorithms, and then downhill from the best few, for a few steps.
_ALGORITHMS = 3
_STARTS = 3
_STEPS = 8

# A schedule runs instead of the heuristic's if it should be faster by this share, even where its
# advantage is less than expected by so many standard deviations of the models.
MARGIN = 0.04
_CAUTION = 1.0


@dataclass(frozen=True)
class Times:
    """Schedules of one problem that were measured together: texts, and seconds per call."""

    problem: ConvProblem
    cpu: Cpu
    schedules: Sequence[str]
    seconds: Sequence[float]

    @functools.cached_property
    def rows(self) -> Floats:
        """The features of the schedules."""
        return rows(self.problem, map(_parsed, self.schedules), self.cpu)


def times(records: Iterable[Record], cpus: Sequence[Cpu]) -> list[Times]:
    """What records of these processors say, on one thread in float32.

    Together are those of a problem, a run and a stage; of several of a schedule the newest counts.
    Left out are baselines, failures, schedules with other fields than today's, those that were
    called once, which may have been a cold call, and schedules without any other beside them.
    """
    known = {cpu.fingerprint: cpu for cpu in cpus}
    found: defaultdict[tuple[str, str, str, str], dict[str, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda r: r.time):
        usable = len(record.samples) > 1 and record.threads == 1 and record.machine in known
        if usable and _has_features(record.schedule):
            together = record.problem, record.machine, record.run, record.stage
            found[together][record.schedule] = record
    parsed = {text: ConvProblem.parse(text) for text, *_ in found}
    return [
        Times(parsed[text], known[machine], [*group], [r.seconds_per_call for r in group.values()])
        for (text, machine, _, _), group in found.items()
        if len(group) > 1 and not parsed[text].types
    ]


@dataclass(frozen=True)
class CostModel:
    """Which schedules of a float32 convolution should be fast on one thread, with hot caches."""

    members: Sequence[Trees]
    algorithms: Sequence[str] = ALGORITHMS
    """Those of its data, which it proposes."""

    @classmethod
    def learnt(
        cls, data: Sequence[Times], growth: Growth | None = None, before: CostModel | None = None
    ) -> Self:
        """A model of these times; it corrects the model `before`, whose data it need not have."""
        x = np.concatenate([group.rows for group in data])
        values, weights = [], []
        for group in data:
            logs = np.log(group.seconds)
            values.append(logs)
            weights.append(np.exp(-_FADES * (logs - logs.min())))
        y, weight = np.concatenate(values), np.concatenate(weights)
        groups = np.repeat(np.arange(len(data)), [len(group.seconds) for group in data])
        numbers = {p: i for i, p in enumerate({group.problem: None for group in data})}
        problems = np.array([numbers[group.problem] for group in data])[groups]
        known = {_parsed(text)[0] for group in data for text in group.schedules}
        known.update(before.algorithms if before else ())
        members = []
        for seed in range(_MEMBERS):
            drawn = np.random.default_rng(seed).exponential(size=len(numbers))
            grows = replace(growth or _GROWTH, seed=seed)
            first = before.members[seed] if before else None
            members.append(Trees.grown(x, y, weight * drawn[problems], groups, grows, first))
        return cls(members, tuple(x for x in ALGORITHMS if x in known))

    @classmethod
    @functools.cache
    def shipped(cls, cpu: Cpu) -> CostModel:
        """The model that comes with the package for machines whose caches are about as fast."""
        return cls.load(SHIPPED / f"{nearest(cpu)}.npz")

    def among(self, algorithms: Sequence[str]) -> CostModel:
        """The same model, which proposes and chooses only some of the algorithms that it knows."""
        return replace(self, algorithms=tuple(x for x in self.algorithms if x in algorithms))

    def save(self, path: Path) -> None:
        """Write the model to a file of NumPy arrays."""
        arrays = [member.arrays() for member in self.members]
        stacked: dict[str, Any] = {x: np.stack([each[x] for each in arrays]) for x in arrays[0]}
        with path.open("wb") as file:
            known = np.array(self.algorithms)
            np.savez_compressed(file, names=np.array(NAMES), algorithms=known, **stacked)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds a model of features that there are no longer.
        """
        with np.load(path, allow_pickle=False) as found:
            names = [str(name) for name in found["names"]]
            known = [str(name) for name in found.get("algorithms", names)]
            stacked = {name: found[name] for name in ("features", "thresholds", "leaves")}
        if not set(names) <= set(NAMES):
            raise ValueError(f"{path.name} is a model of other features: learn it again")
        numbers = np.array([NAMES.index(name) for name in names], np.int16)
        stacked["features"] = numbers[stacked["features"]]
        count = len(stacked["features"])
        members = [Trees.of_arrays({x: y[i] for x, y in stacked.items()}) for i in range(count)]
        return cls(members, tuple(name for name in ALGORITHMS if name in known))

    def logarithms(self, p: ConvProblem, schedules: Sequence[str], cpu: Cpu) -> Floats:
        """What each member expects (members x schedules): logarithms of times.

        Only their differences between schedules of one problem mean something.
        """
        return self._logarithms(p, [_parsed(text) for text in schedules], cpu)

    def proposals(
        self, p: ConvProblem, cpu: Cpu, most: int = 8, seed: int = 0, layout: str = ""
    ) -> list[str]:
        """Schedules for `p` that should be fastest, the best first; none for other types than f32.

        The heuristics' schedules compete with a sample of each algorithm's space, and the best
        continue to their neighbours. With `layout` all have this layout.
        """
        if p.types:
            return []
        pool = self._pool(p, cpu, seed, layout)
        return [template.text(schedule) for template, schedule in pool.best(most)]

    def choice(self, p: ConvProblem, cpu: Cpu, heuristic: str) -> str:
        """The schedule to run without any measurement: the heuristic's unless a gain is expected.

        `heuristic` is the text of that schedule.
        """
        if p.types or not _has_features(heuristic, self.algorithms):
            return heuristic
        template, schedule = parse_schedule(heuristic)
        (better, changed), gain = self._pool(p, cpu).surest((template, schedule))
        return better.text(changed) if gain > math.log(1 + MARGIN) else heuristic

    def _pool(self, p: ConvProblem, cpu: Cpu, seed: int = 0, layout: str = "") -> _Pool:
        """Schedules that may be fast, and what is expected of them."""
        pool = _Pool(self, p, cpu, layout)
        templates = [t for t in applicable(p, cpu) if t.name in self.algorithms and pool.has(t)]
        templates.sort(key=lambda t: t.rank(p, cpu), reverse=True)
        pool.add((t, s) for t in templates if pool.fits(s := t.heuristic(p, cpu)))
        for template in templates[:_ALGORITHMS]:
            pool.add((template, s) for s in pool.space(template, seed).sample(_SAMPLE))
        for _ in range(_STEPS):
            starts = [key for key in pool.best(_STARTS) if key not in pool.explored]
            if not starts:
                break
            for template, schedule in starts:
                pool.explored.add((template, schedule))
                near = pool.space(template, seed).neighbours(schedule)
                pool.add((template, s) for s in near)
        return pool

    def _logarithms(self, p: ConvProblem, schedules: Sequence[tuple[str, Any]], cpu: Cpu) -> Floats:
        x = rows(p, schedules, cpu)
        return np.stack([member(x) for member in self.members])


@functools.lru_cache(2048)
def shipped_proposals(p: Problem, cpu: Cpu, most: int) -> Sequence[str]:
    """The proposals of the model that comes with the package; none for attention."""
    if not isinstance(p, ConvProblem):
        return []
    return CostModel.shipped(cpu).proposals(p, cpu, most)


_Key = tuple[KernelTemplate, Any]
"""An algorithm and a schedule of it."""


class _Pool:
    """Schedules of a problem, and the logarithms of their times that each member expects."""

    def __init__(self, model: CostModel, p: ConvProblem, cpu: Cpu, layout: str) -> None:
        self._model, self._p, self._cpu, self._layout = model, p, cpu, layout
        self._expected: dict[_Key, Floats] = {}
        self._spaces: dict[str, Untried] = {}
        self.explored: set[_Key] = set()

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

    def add(self, found: Iterable[_Key]) -> None:
        new = [key for key in dict.fromkeys(found) if key not in self._expected]
        if new:
            pairs = [(template.name, schedule) for template, schedule in new]
            expected = self._model._logarithms(self._p, pairs, self._cpu)
            self._expected.update(zip(new, expected.T, strict=True))

    def best(self, most: int) -> list[_Key]:
        ordered = sorted(self._expected, key=lambda key: float(self._expected[key].mean()))
        return list(islice(ordered, most))

    def surest(self, usual: _Key) -> tuple[_Key, float]:
        """What is surest to be faster than `usual`, and the logarithm of how many times faster.

        That is so many standard deviations of the members less than they expect.
        """
        self.add([usual])
        gains = self._expected[usual] - np.stack([*self._expected.values()])
        sure = gains.mean(axis=1) - _CAUTION * gains.std(axis=1)
        at = int(np.argmax(sure))
        return [*self._expected][at], float(sure[at])


def _parsed(text: str) -> tuple[str, Any]:
    template, schedule = parse_schedule(text)
    return template.name, schedule


def _has_features(text: str, algorithms: Sequence[str] = ALGORITHMS) -> bool:
    try:
        return _parsed(text)[0] in algorithms
    except ScheduleError:
        return False
