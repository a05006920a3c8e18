"""Random schedules of random problems: what a kernel accepts it computes, the rest it refuses.

Schedules are drawn from the search spaces and beyond them, problems are small and odd, operands
lie as whole networks have them lie: with halos, as parts of other tensors.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

import numpy as np

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import U8
from fastrun.kernels.core.layout import BLOCKS, Layout, Placement
from fastrun.kernels.core.problem import ACTIVATIONS, ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.template import KernelTemplate, ScheduleError
from fastrun.kernels.core.types import Types
from fastrun.kernels.registry import templates
from fastrun.search_spaces.space import space_for
from tests.support.execution import reference, run
from tests.support.integers import steps_allowed, steps_off_by

LAYOUTS = ("NCHW", "NHWC", *(f"NCHW{b}c" for b in BLOCKS))

TYPES = "u8s8>u8", "u8s8>u8", "u8s8>f32", "u8s7>u8", "u8s6>u8", "u8s4>f32", "u8s9>u8"

# Errors allowed: of sums of products, and of Winograd's largest tiles.
EXACT, TRANSFORMED = 2e-5, 5e-3


@dataclass(frozen=True)
class Case:
    """One kernel to be built, and where its operands lie."""

    template: KernelTemplate
    p: ConvProblem
    schedule: Any
    cpu: Cpu
    io: Io | None  # None: the usual placement

    def __str__(self) -> str:
        return f"{self.cpu.lanes} lanes, {self.p}, {self.template.text(self.schedule)}, {self.io}"

    def program(self) -> Program | None:
        """The kernel, or None where it is refused."""
        try:
            if self.io is None:
                return self.template.program(self.p, self.schedule, self.cpu)
            return self.template.build(self.p, self.schedule, self.cpu, self.io)
        except ScheduleError:
            return None

    def wrong(self, program: Program) -> str | None:
        """What is wrong with what the kernel computes."""
        if self.p.precision.integer:
            steps, allowed = steps_off_by(self.p, program), steps_allowed(self.p)
            if expected := self.template.error(self.p, self.schedule):
                least = 1.0 if self.p.precision.dst is U8 else 0.0
                allowed = max(allowed, least, 12 * expected)
            return None if steps <= allowed else f"off by {steps:.2g}"
        operands = random_operands(self.p, seed=1)
        found = run(self.p, program, operands)
        # Before the activation, which may leave little of them, outputs are of order 1.
        off = float(np.abs(found - reference(self.p, operands)).max())
        limit = EXACT if self.template.rows_alike else TRANSFORMED
        return None if off <= limit else f"off by {off:.2g}"


def random_case(seed: str, cpu: Cpu) -> Case:
    """The case of that seed; algorithms that exist to be compared with come up less often."""
    draw = random.Random(seed)
    baseline = draw.random() < 0.05
    signs = Types.parse("b1")
    # Others take no type that problems begin with, so that no problem would ever suit them.
    able = [t for t in templates().values() if t.takes(Types(), cpu) or t.takes(signs, cpu)]
    template = draw.choice([t for t in able if t.baseline == baseline])
    p = random_problem(draw)
    if template.takes(signs, cpu):
        p = of_signs(p)
    while template.refusal(p, cpu) is not None:
        p = random_problem(draw)
        if p.groups == 1 and draw.random() < 0.1:
            # Whole vectors in each half of the channels, as Strassen's products need them.
            c, oc = (2 * cpu.block * draw.randint(1, 2) for _ in "io")
            p = replace(p, c=c, oc=oc)
    typed = replace(p, types=draw.choice(TYPES))
    if draw.random() < 0.4 and template.refusal(typed, cpu) is None:
        p = typed
    schedule = random_schedule(draw, template, p, cpu)
    io = random_io(draw, p, schedule.layout) if draw.random() < 0.4 else None
    return Case(template, p, schedule, cpu, io)


def random_problem(draw: random.Random) -> ConvProblem:
    """A small convolution with all that can be odd about one."""
    one = [1] * 4
    kernel = draw.choice([(1, 1), (1, 1), (3, 3), (3, 3), (2, 2), (5, 5), (1, 3), (3, 1), (2, 5)])
    if draw.random() < 0.05:
        kernel = draw.choice([(7, 7), (1, 7), (9, 3), (11, 11)])
    stride = draw.choice([(1, 1)] * 4 + [(2, 2), (2, 1), (1, 3), (4, 3)])
    dilation = draw.choice([(1, 1)] * 5 + [(2, 2), (1, 2), (3, 1)])
    padding = draw.choice(
        [(0, 0, 0, 0)] * 2
        + [(kernel[0] // 2, kernel[1] // 2) * 2] * 2
        + [tuple(draw.randint(0, 3) for _ in range(4))]
    )
    groups = draw.choice([1] * 5 + [2, 3, 4, 8])
    c, oc = (
        draw.choice([*one, 2, 3, 4, 5, 7, 8, 9, 11, 12, 15, 16, 17, 19, 24, 31, 33]) for _ in "io"
    )
    if groups > 1:
        c, oc = draw.choice([(1, 1), (1, 2), (2, 1), (3, 3), (4, 4), (8, 8), (5, 7), (16, 16)])
        groups = draw.choice([groups, 9, 16, 17]) if c * oc < 5 else groups
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    h, w = (
        max(draw.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13]), span - before - after, 1)
        for span, before, after in zip(spans, padding[:2], padding[2:], strict=True)
    )
    return ConvProblem(
        n=draw.choice([1, 1, 1, 2, 3]),
        c=groups * c,
        h=h,
        w=w,
        oc=groups * oc,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw.random() < 0.5,
        add=draw.random() < 0.3,
        activation=draw.choice(["", "", "relu", *ACTIVATIONS]),
    )


def of_signs(p: ConvProblem) -> ConvProblem:
    """The problem of one bit: its padding is a part of the image, and there is one group."""
    top, left, bottom, right = p.padding
    h, w = p.h + top + bottom, p.w + left + right
    return replace(p, h=h, w=w, padding=(0, 0, 0, 0), groups=1, types="b1")


def random_schedule(draw: random.Random, template: KernelTemplate, p: ConvProblem, cpu: Cpu) -> Any:
    """Values of the algorithm's space, here and there another of their type."""
    domains = space_for(template.name, p, cpu).domains
    types = get_type_hints(template.schedule)
    values = {}
    for field in fields(template.schedule):
        if field.name not in domains:
            continue  # it stays empty
        values[field.name] = draw.choice(list(domains[field.name]))
        if draw.random() < 0.25:
            values[field.name] = _beyond(draw, field.name, types[field.name], domains[field.name])
    return template.schedule(**values)


def _beyond(draw: random.Random, name: str, kind: type, domain: Any) -> Any:
    if kind is bool:
        return draw.random() < 0.5
    if kind is int:
        small = draw.randint(1, 12)
        return draw.choice([small, small, small, draw.randint(1, 70), draw.choice([-1, 0, 10**6])])
    if name == "layout":
        one = draw.choice(LAYOUTS)
        return draw.choice([one, one, f"{draw.choice(LAYOUTS)}>{one}"])
    return draw.choice([*domain, "nonsense"])


def random_io(draw: random.Random, p: ConvProblem, layout: str) -> Io:
    """Operands with halos, and as parts of wider tensors."""
    io = Io.of(p, layout)
    if draw.random() < 0.1:
        # Not what the schedule says, nor what the residual's reader expects.
        src, dst, add = (
            replace(x, layout=Layout(draw.choice(LAYOUTS), x.dtype))
            for x in (io.src, io.dst, io.add)
        )
        return Io(src, dst, draw.choice([add, replace(add, layout=dst.layout)]))
    src = _elsewhere(draw, io.src)
    dst = _elsewhere(draw, replace(io.dst, halo=_halo(draw, io.dst.halo)))
    add = _elsewhere(draw, io.add)
    return Io(src, dst, add)


def _halo(draw: random.Random, least: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    top, left, bottom, right = (n + draw.choice([0, 0, 1, 2]) for n in least)
    return draw.choice([least, (top, left, bottom, right)])


def _elsewhere(draw: random.Random, where: Placement) -> Placement:
    where = replace(where, halo=_halo(draw, where.halo))
    if draw.random() < 0.6:
        return where
    unit = where.layout.blocked or 1
    first = unit * draw.randint(0, 2)
    return replace(where, first=first, whole=first + where.c + draw.choice([0, 1, 5, 16]))
