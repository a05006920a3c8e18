"""What measurements of similar problems suggest where there are none of a problem itself.

A search starts from the winners of the nearest shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from fastrun.kernels.core.attention import AttentionProblem, Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.registry import parse_schedule
from fastrun.search_spaces.space import Space, space_for
from fastrun.search_spaces.untried import rings
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import Record

# Old winners of a problem that are measured again.
_OLD = 8

# Winners of other problems that are tried.
_NEAR = 4

# A schedule that breaks a rule here is moved by so many steps at most: a field by one value each.
_STEPS = 2

# Epilogues matter little to what is fast: less than a shape that differs by a fifth.
_EPILOGUE = 0.25


def distance(a: Problem, b: Problem) -> float:
    """How far apart two problems are: factors between their sizes, as logarithms to base 2.

    Infinite between convolution and attention, and between different filters, strides, dilations
    or kinds of groups (none, one channel each, several): different classes of problems.
    """
    if _kind(a) != _kind(b):
        return math.inf
    sizes = zip(_sizes(a), _sizes(b), strict=True)
    between = math.sqrt(math.fsum(math.log2(x / y) ** 2 for x, y in sizes))
    epilogues = [(p.bias, p.add, p.activation) for p in (a, b)]
    return float(between + _EPILOGUE * sum(x != y for x, y in zip(*epilogues, strict=True)))


def nearest(p: Problem, known: Iterable[Problem]) -> list[Problem]:
    """Those of `known` that are of the same class as `p`, the nearest first, without `p` itself."""
    far = {other: distance(p, other) for other in known if other != p}
    return sorted((q for q in far if far[q] < math.inf), key=far.__getitem__)


def transferred(schedule: str, p: Problem, cpu: Cpu) -> str | None:
    """The schedule nearest to this one of another problem that is worth trying for `p`.

    Numbers that the algorithm's space for `p` does not have move to the closest that it has, and
    one or two steps further if the schedule breaks a rule. None where the algorithm does not apply,
    or no legal schedule is so near.
    """
    try:
        template, wanted = parse_schedule(schedule)
    except ScheduleError:
        return None  # the algorithm had other fields then, or no longer exists
    if template.refusal(p, cpu) is not None:
        return None
    found = _closest(space_for(template.name, p, cpu), wanted)
    return None if found is None else template.text(found)


def suggestions(
    p: Problem, winners: Mapping[Problem, str], cpu: Cpu
) -> Iterator[tuple[Problem, str]]:
    """Schedules for `p` from the winners of other problems, with the problem; nearest first."""
    seen = set()
    for other in nearest(p, winners):
        schedule = transferred(winners[other], p, cpu)
        if schedule is not None and schedule not in seen:
            seen.add(schedule)
            yield other, schedule


def first_guesses(
    p: Problem, ranking: Iterable[Record], winners: Mapping[Problem, str], cpu: Cpu
) -> list[str]:
    """What a search for `p` should try first: its own old winners, then those of other problems.

    `ranking` is `p`'s own. Its schedules of another generator or compiler are measured again.
    """
    old = (r.schedule for r in ranking if r.toolchain != toolchain())
    own = (transferred(schedule, p, cpu) for schedule in islice(old, _OLD))
    near = islice(suggestions(p, winners, cpu), _NEAR)
    return [*filter(None, own), *(schedule for _, schedule in near)]


def _kind(p: Problem) -> tuple[Any, ...]:
    if isinstance(p, AttentionProblem):
        return (AttentionProblem,)
    groups = 0 if p.groups == 1 else 1 if p.group_c == 1 else 2
    return p.kernel, p.stride, p.dilation, groups


def _sizes(p: Problem) -> tuple[int, ...]:
    if isinstance(p, AttentionProblem):
        return p.n * p.heads, p.queries, p.size, p.keys, p.values
    return p.n, p.c, p.oc, p.group_c, p.oh, p.ow


def _closest(space: Space, wanted: Any) -> Any | None:
    """The legal schedule that is the fewest steps from the point closest to `wanted`."""
    point = []
    for name, domain in space.domains.items():
        value, values = getattr(wanted, name), list(domain)
        if value not in values:
            if type(value) is not int or not all(type(v) is int for v in values):
                return None
            value = min(values, key=lambda v: abs(math.log((1 + v) / (1 + value))))
        point.append(values.index(value))
    legal = (
        schedule
        for ring in rings(space, tuple(point), _STEPS)
        for schedule in map(space.at, ring)
        if space.broken_rule(schedule) is None
    )
    return next(legal, None)
