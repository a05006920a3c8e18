"""Search spaces: for each field of a schedule, the values to try in order, and rules."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.codegen.micro_kernel import registers
from fastrun.kernels.core.attention import AttentionProblem, Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import BLOCKS, Layout
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import check, word

# Multiply-adds of a loop body that a core can keep as decoded instructions.
OP_CACHE = 320

Rule = Callable[[Any], bool]
Point = tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """Every schedule of one algorithm worth measuring for one problem on one machine.

    `domains` lists the values of each field in an order in which neighbours have similar effects.
    A field that may be empty and has no domain stays empty.
    `rules` are predicates; the name of a rule is the reason that is counted. A point is a position
    in every domain.

    Raises:
        TypeError: the domains are not the schedule's fields, or one of them is empty.
    """

    schedule: type[Any]
    domains: Mapping[str, Sequence[Any]]
    rules: Sequence[Rule] = ()

    def __post_init__(self) -> None:
        declared = [f.name for f in fields(self.schedule)]
        empty = {f.name for f in fields(self.schedule) if f.default == ""} - self.domains.keys()
        if [name for name in declared if name not in empty] != list(self.domains):
            raise TypeError(f"domains {list(self.domains)} are not the schedule's {declared}")
        if bare := [name for name, values in self.domains.items() if not len(values)]:
            raise TypeError(f"nothing to choose from for {', '.join(bare)}")

    def __iter__(self) -> Iterator[Any]:
        """Every schedule that breaks no rule."""
        for point in itertools.product(*(range(len(d)) for d in self.domains.values())):
            schedule = self.at(point)
            if self.broken_rule(schedule) is None:
                yield schedule

    def at(self, point: Point) -> Any:
        """The schedule at a point."""
        pairs = zip(self.domains.items(), point, strict=True)
        return self.schedule(**{name: values[i] for (name, values), i in pairs})

    def point(self, schedule: Any) -> Point | None:
        """Where `schedule` lies, or None when one of its values is in no domain."""
        positions = []
        for name, values in self.domains.items():
            value = getattr(schedule, name)
            if value not in values:
                return None
            positions.append(list(values).index(value))
        return tuple(positions)

    def neighbours(self, point: Point) -> Iterator[Point]:
        """The points one step away in one field, also those that break a rule."""
        for axis, values in enumerate(self.domains.values()):
            for moved in (point[axis] - 1, point[axis] + 1):
                if 0 <= moved < len(values):
                    yield (*point[:axis], moved, *point[axis + 1 :])

    def broken_rule(self, schedule: Any) -> str | None:
        """The name of the first rule that `schedule` breaks."""
        return next((rule.__name__ for rule in self.rules if not rule(schedule)), None)

    def pinned(self, text: str) -> Space:
        """The part of the space that has the values in a schedule's text.

        In `winograd(mh=2|4, prefetch=0)`, `mh` is 2 or 4, `prefetch` is 0, other fields are free.

        Raises:
            ScheduleError: there is no such field, or its domain has no such value.
        """
        domains = dict(self.domains)
        body = text.partition("(")[2].removesuffix(")")
        for part in filter(None, map(str.strip, body.split(","))):
            name, _, wanted = part.partition("=")
            check(name in domains, f"no field {name!r} to pin: there are {', '.join(domains)}")
            words = {word(value): value for value in domains[name]}
            asked = wanted.split("|")
            check(set(asked) <= set(words), f"{part}: {name} is one of {', '.join(words)} here")
            domains[name] = [value for known, value in words.items() if known in asked]
        return Space(self.schedule, domains, self.rules)

    @property
    def volume(self) -> int:
        """Points before the rules apply."""
        return math.prod(map(len, self.domains.values()))


def space_for(algorithm: str, p: Problem, cpu: Cpu) -> Space:
    """The space in the file that is named like the algorithm: at the same path as in `kernels`.

    Raises:
        ModuleNotFoundError: the algorithm has no space.
    """
    kind = "attention" if isinstance(p, AttentionProblem) else "conv"
    module = importlib.import_module(f"fastrun.search_spaces.{kind}.{algorithm}")
    space: Space = module.space(p, cpu)
    return space


def tile_rules(
    cpu: Cpu,
    tile: Callable[[Any], tuple[int, int]],
    further: Callable[[Any], int] = lambda schedule: 0,
) -> tuple[Rule, Rule]:
    """Two rules of every register tile: `fits_registers` and `body_fits_op_cache`.

    `tile` gives its rows and its vectors, `further` the registers that a step needs beside it; the
    loop body has `unroll` steps.
    """

    def fits_registers(s: Any) -> bool:
        return registers(*tile(s)) + further(s) <= cpu.registers

    def body_fits_op_cache(s: Any) -> bool:
        return bool(math.prod(tile(s)) * s.unroll <= OP_CACHE)

    return fits_registers, body_fits_op_cache


def upto(limit: int, *values: int) -> list[int]:
    """Those of `values` that are at most `limit`; if there are none, the limit."""
    return [v for v in values if v <= limit] or [min(values[0], limit)]


def blocked_layouts(p: ConvProblem, cpu: Cpu) -> list[str]:
    """The NCHWc layouts whose blocks fill vectors and do not cross group boundaries."""
    blocks = [b for b in BLOCKS if b in (cpu.lanes // 2, cpu.lanes, 2 * cpu.lanes)]
    return [
        f"NCHW{b}c" for b in blocks if p.groups == 1 or (p.group_c % b == 0 and p.group_oc % b == 0)
    ]


def prefetch_distances(p: ConvProblem, cpu: Cpu) -> list[int]:
    """Prefetch distances in steps of K: none, a few, a panel; only none if L2 holds the weights."""
    stays = p.precision.weights.bytes(p.oc * p.depth) <= cpu.l2
    return [0] if stays else [0, 16, p.depth]


def blocks_of_k(p: ConvProblem, cpu: Cpu) -> dict[str, list[str]]:
    """The field `kc`: all channels, or parts of which L1 holds at least two vectors' weights.

    Nothing where a quarter of L1 holds all weights of a vector of channels, or sums cannot be
    interrupted.
    """
    taps = p.kernel[0] * p.kernel[1]
    limit = cpu.l1 // F32.bytes(taps * cpu.lanes)
    if p.types or p.group_c <= limit // 4:
        return {}
    parts = [kc for kc in (16, 32, 64, 128, 256) if p.group_c % kc == 0 and kc * taps >= 64]
    fitting = [str(kc) for kc in parts if kc < p.group_c and 2 * kc <= limit]
    return {"kc": ["", *reversed(fitting)]} if fitting else {}


class DotDomain:
    """The kinds of dot products of a problem, as a field of its schedules."""

    def __init__(self, p: ConvProblem, cpu: Cpu) -> None:
        self._known = {dot.name: dot for dot in dots(p.precision, cpu)}
        self._channels = p.group_c
        # Float32 has one kind, which schedules do not name.
        self.domain = {"dot": list(self._known)} if p.types else {}

    def registers(self, schedule: Any) -> int:
        """Registers that a step needs beside the tile."""
        return self._known[schedule.dot].registers

    def groups_fill_blocks(self, schedule: Any) -> bool:
        """A group of channels lies side by side, and does not only multiply zeros."""
        block = Layout(schedule.layout.partition(">")[0]).block(self._channels)
        group = self._known[schedule.dot].group
        return block % group == 0 or (block == self._channels and group < block + 4)
