"""What measurements of similar problems suggest where there are none of a problem itself.

A search starts from the winners of the nearest shapes; a network that was never tuned may run by
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from kernels.core.cpu import Cpu
from kernels.core.problem import ConvProblem
from kernels.core.template import ScheduleError, parse_schedule
from search_spaces.space import Space, space_for
from tuner.environment import toolchain
from tuner.record import Record

# Old winners of a problem that are measured again, and winners of other problems that are tried.
_OLD, _NEAR = 8, 4

# Epilogues matter little to what is fast: less than a shape that differs by a fifth.
_EPILOGUE = 0.25


def distance(a: ConvProblem, b: ConvProblem) -> float:
    """How far apart two problems are: factors between their sizes, as logarithms to base 2.

    Infinite between different filters, strides, dilations or kinds of groups (none, one channel
    each, several), which are different classes of problems.
    """
    if _kind(a) != _kind(b):
        return math.inf
    sizes = zip(_sizes(a), _sizes(b), strict=True)
    between = math.sqrt(math.fsum(math.log2(x / y) ** 2 for x, y in sizes))
    epilogues = [(p.bias, p.add, p.activation) for p in (a, b)]
    return float(between + _EPILOGUE * sum(x != y for x, y in zip(*epilogues, strict=True)))


def nearest(p: ConvProblem, known: Iterable[ConvProblem]) -> list[ConvProblem]:
    """Those of `known` that are of the same class as `p`, the nearest first, without `p` itself."""
    far = {other: distance(p, other) for other in known if other != p}
    return sorted((q for q in far if far[q] < math.inf), key=far.__getitem__)


def transferred(schedule: str, p: ConvProblem, cpu: Cpu) -> str | None:
    """The schedule nearest to this one of another problem that is worth trying for `p`.

    Numbers that the algorithm's space has not for `p` move to the closest that it has. None where
    the algorithm does not apply, or what comes of it breaks a rule.
    """
    try:
        template, wanted = parse_schedule(schedule)
    except ScheduleError:
        return None  # of an algorithm as it was, or of one that is no more
    if template.why_not(p, cpu) is not None:
        return None
    found = _closest(space_for(template.name, p, cpu), wanted)
    return None if found is None else template.text(found)


def suggestions(
    p: ConvProblem, winners: Mapping[ConvProblem, str], cpu: Cpu
) -> Iterator[tuple[ConvProblem, str]]:
    """Schedules for `p` by the winners of other problems, and whose they were; nearest first."""
    told = set()
    for other in nearest(p, winners):
        schedule = transferred(winners[other], p, cpu)
        if schedule is not None and schedule not in told:
            told.add(schedule)
            yield other, schedule


def first_guesses(
    p: ConvProblem, ranking: Iterable[Record], winners: Mapping[ConvProblem, str], cpu: Cpu
) -> list[str]:
    """What a search for `p` should try first: its own old winners, then those of other problems.

    `ranking` is `p`'s own. What it holds of another generator or compiler is not believed but
    measured again.
    """
    old = (r.schedule for r in ranking if r.toolchain != toolchain())
    own = (transferred(schedule, p, cpu) for schedule in islice(old, _OLD))
    near = islice(suggestions(p, winners, cpu), _NEAR)
    return [*filter(None, own), *(schedule for _, schedule in near)]


def _kind(p: ConvProblem) -> tuple[Any, ...]:
    groups = 0 if p.groups == 1 else 1 if p.group_c == 1 else 2
    return p.kernel, p.stride, p.dilation, groups


def _sizes(p: ConvProblem) -> tuple[int, ...]:
    return p.n, p.c, p.oc, p.group_c, p.oh, p.ow


def _closest(space: Space, wanted: Any) -> Any | None:
    values = {}
    for name, domain in space.domains.items():
        value = getattr(wanted, name)
        if value not in domain:
            numbers = [v for v in domain if type(v) is int]
            if type(value) is not int or not numbers:
                return None
            value = min(numbers, key=lambda v: abs(math.log((1 + v) / (1 + value))))
        values[name] = value
    found = space.schedule(**values)
    return None if space.broken_rule(found) else found
