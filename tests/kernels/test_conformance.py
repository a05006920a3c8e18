"""Every algorithm on every awkward problem it accepts, against float64, wherever tasks are cut.

Kernels are built with vectors of 4, 8 and 16 lanes, as far as this machine can run them.

A new file in kernels/conv is examined without a line being added here.
"""

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from fastrun.kernels.codegen.micro_kernel import registers
from fastrun.kernels.core import processors
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Halo
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.compile import compile_object
from fastrun.kernels.registry import applicable, heuristic_choice, templates
from fastrun.search_spaces.space import space_for
from tests.support.algorithms import first_taken
from tests.support.execution import reference, rms_error, run, tolerance
from tests.support.lanes import EVERY_CPU, RUN_HERE, without_tiles

CPU = Cpu.host()
L = CPU.lanes

# Algorithms whose vectors of output pixels continue from row to row.
WITHOUT_GAPS = {"im2col", "pointwise"}

PROBLEMS = [
    "conv 1x1x1x1 1x1x1 s1 p0",
    "conv 1x1x5x5 1x3x3 s1 p1 relu",
    f"conv 1x{L - 1}x7x5 {L + 1}x3x3 s1 p1 bias relu",
    f"conv 2x{L}x6x9 {L}x3x3 s1 p1 bias add relu",
    f"conv 1x{L + 1}x11x13 {L - 1}x3x3 s2 p1 bias add relu6",
    f"conv 1x{2 * L}x9x8 {3 * L}x1x1 s1 p0 bias hardswish",
    "conv 1x64x5x5 96x1x1 s1 p0 bias add gelu",
    "conv 3x32x3x7 64x1x1 s1 p0",
    "conv 3x20x5x7 12x1x1 s1 p0 g4 bias add relu",
    "conv 1x17x8x8 19x1x1 s2 p0 add",
    "conv 1x3x23x19 10x7x7 s2 p3 bias relu",
    "conv 2x5x17x14 7x5x5 s1 p2 sigmoid",
    "conv 1x6x13x7 5x1x7 s1 p0x3 bias",
    "conv 1x6x7x13 9x3x1 s2x1 p1x0",
    "conv 1x4x5x6 6x3x3 s1 p2,0,1,3 bias",
    "conv 1x3x3x3 8x3x3 s1 p2",
    "conv 1x8x16x15 8x3x3 s1 p2 d2 bias",
    "conv 1x8x12x19 16x3x3 s3x2 p4x3 d1x3 bias relu",
    f"conv 1x{2 * L}x7x7 {2 * L}x3x3 s1 p1 g2 bias relu",
    "conv 2x24x9x11 20x3x3 s1 p1 g4 bias add sigmoid",
    f"conv 1x{L + 3}x10x9 {L + 3}x3x3 s1 p1 g{L + 3} bias relu6",
    "conv 1x32x12x12 32x3x3 s2 p1 g32 bias relu6",
    "conv 1x24x9x9 24x5x5 s2 p2 g24 bias hardswish",
    "conv 1x6x11x10 12x3x3 s1 p1 g6 bias",
    "conv 1x32x15x17 32x3x3 s1 p1 bias",
    "conv 2x17x13x16 19x3x3 s1 p4x6 d4x6 bias add relu",
    "conv 1x20x11x7 24x3x5 s1 p3x6 d3 g2 bias",
    "conv 1x5x13x12 6x9x9 s1 p4 bias",
    "conv 1x7x1x9 6x2x2 s1 p1 d2 bias relu",
    "conv 1x7x2x9 6x3x3 s1 p4 d2 bias",
    "conv 1x3x31x27 9x11x11 s4 p2 bias relu",
    "conv 2x18x1x37 20x1x3 s1x2 p0x1 bias add relu",
    "conv 1x20x3x9 17x3x3 s1 p5 d5 bias",
    "conv 1x2x1x300 3x1x5 s1x70 p0x2",
    f"conv 2x37x8x9 {L + 1}x3x3 s2x1 p0 d1x2 bias add relu b1",
]


def schedules(name: str, p: ConvProblem, cpu: Cpu) -> list[object]:
    """The heuristic's, and some of the space: as many as three with this machine's vectors."""
    template = templates()[name]
    legal = list(_sample(name, p, cpu))
    some = legal if cpu.lanes == L else legal[-1:]
    return list(dict.fromkeys([template.heuristic(p, cpu), *some]))


def _sample(name: str, p: ConvProblem, cpu: Cpu):
    space = space_for(name, p, cpu)
    draw = random.Random(f"{name} {p}")
    sizes = [len(d) for d in space.domains.values()]
    corners = [tuple(0 for _ in sizes), tuple(n - 1 for n in sizes)]
    randoms = [tuple(draw.randrange(n) for n in sizes) for _ in range(200)]
    found = (space.at(point) for point in corners + randoms)
    legal = [s for s in found if space.broken_rule(s) is None]
    return legal[:3]


def cases() -> list[object]:
    found = []
    for text in PROBLEMS:
        p = ConvProblem.parse(text)
        for cpu in RUN_HERE:
            for template in applicable(p, cpu):
                name = f"{template.name}, {cpu.lanes} lanes: {text}"
                found.append(pytest.param(p, template.name, cpu, id=name))
    return found


@pytest.mark.parametrize(("p", "name", "cpu"), cases())
def test_agrees_with_float64(p: ConvProblem, name: str, cpu: Cpu) -> None:
    operands = random_operands(p, seed=1)
    truth, template = reference(p, operands), templates()[name]
    for schedule in schedules(name, p, cpu):
        program, text = template.program(p, schedule, cpu), template.text(schedule)
        whole = run(p, program, operands)
        assert rms_error(whole, truth) < tolerance(template, p, schedule), text
        cut = run(p, program, operands, threads=3)
        assert np.array_equal(whole, cut), f"{text}: the result depends on how tasks are cut"


@pytest.mark.parametrize("cpu", EVERY_CPU)
@pytest.mark.parametrize("name", [n for n in templates() if not templates()[n].baseline])
def test_output_with_a_halo(name: str, cpu: Cpu) -> None:
    """The consumer's padding lies in the output's buffer and must stay untouched."""
    texts = [
        "conv 1x32x6x7 32x3x3 s1 p1 bias add relu",
        "conv 1x32x6x7 32x3x3 s1 p1 g32 bias add",
        "conv 1x32x6x7 32x1x1 s1 p0 bias",
        "conv 1x32x6x7 32x3x3 s1 p0 bias add relu b1",
    ]
    template = templates()[name]
    p = first_taken(template, texts, cpu)
    if p is None:
        pytest.skip(f"{name} needs other registers")
    schedule = template.heuristic(p, cpu)
    io = Io.of(p, schedule.layout)
    io = replace(io, dst=replace(io.dst, halo=(1, 2, 3, 1)), src=replace(io.src, halo=(2, 3, 2, 4)))
    if name in WITHOUT_GAPS:
        with pytest.raises(ScheduleError, match="gaps between"):
            template.build(p, schedule, cpu, io)
        side = p.padding[1]
        src, dst = (2, side, 2, side), (1, 0, 3, 0)
        io = replace(io, dst=replace(io.dst, halo=dst), src=replace(io.src, halo=src))
    program = template.build(p, schedule, cpu, io)
    operands = random_operands(p, seed=2)
    error = rms_error(run(p, program, operands), reference(p, operands))
    assert error < tolerance(template, p, schedule)


@pytest.mark.parametrize("halo", [(0, 2, 0, 3), (1, 1, 2, 1)])
def test_one_row_of_pixels_in_halos(halo: Halo) -> None:
    """Where there is room above and below it, a row cannot be read as one column."""
    p = ConvProblem.parse("conv 1x20x1x37 24x1x3 s1x2 p0x1 bias relu")
    template, operands = templates()["direct"], random_operands(p, seed=4)
    for schedule in schedules("direct", p, CPU):
        io = Io.of(p, schedule.layout)
        io = replace(io, src=replace(io.src, halo=halo), dst=replace(io.dst, halo=halo))
        found = run(p, template.build(p, schedule, CPU, io), operands, threads=2)
        assert rms_error(found, reference(p, operands)) < tolerance(template, p, schedule)


def test_winograd_leaves_wide_dilations_to_direct() -> None:
    """Most taps lie in padding, and hardly any outputs share work."""
    narrow, wide = (f"conv 1x320x33x33 256x3x3 s1 p{d} d{d}" for d in (6, 18))
    cpu = without_tiles(CPU)
    assert heuristic_choice(ConvProblem.parse(narrow), cpu)[0].name == "winograd"
    assert heuristic_choice(ConvProblem.parse(wide), cpu)[0].name == "direct"


TARGETS = [Cpu.avx2(), Cpu.avx512(), Cpu.neon(), processors.target("x86-64-v4+amx")]


@pytest.mark.parametrize("target", TARGETS, ids=lambda c: c.model)
@pytest.mark.parametrize("name", list(templates()))
def test_builds_for_other_processors(name: str, target: Cpu) -> None:
    template = templates()[name]
    problems = [p for p in map(ConvProblem.parse, PROBLEMS) if not template.refusal(p, target)]
    for p in problems:
        for schedule in schedules(name, p, target):
            assert template.program(p, schedule, target).ir
    if not problems:
        pytest.skip(f"{name} needs other registers")
    p = next(p for p in problems if p.c > 4)
    assert compile_object(template.program(p, template.heuristic(p, target), target).ir, target)


def test_ir_is_deterministic() -> None:
    for text in ("conv 1x16x8x8 16x3x3 s1 p1 bias relu", "conv 1x16x8x8 16x3x3 s1 p0 bias b1"):
        p = ConvProblem.parse(text)
        for template in applicable(p, CPU):
            schedule = template.heuristic(p, CPU)
            assert template.program(p, schedule, CPU).ir == template.program(p, schedule, CPU).ir


def tiles() -> list[object]:
    """Every register tile: (algorithm, its schedule's fields, processor)."""
    rows_of = {"direct": "tile_w", "planar": "ocs", "pointwise": "rows"}
    found = []
    for cpu, (name, rows_field) in product(RUN_HERE, rows_of.items()):
        for rows in range(1, cpu.registers):
            cols = max((c for c in range(1, 8) if registers(rows, c) <= cpu.registers), default=0)
            if cols:
                fields = {rows_field: rows, "cols": cols}
                id = f"{name} {rows}x{cols}, {cpu.lanes} lanes"
                found.append(pytest.param(name, fields, cpu, id=id))
    return found


@pytest.mark.parametrize(("name", "fields", "cpu"), tiles())
def test_tails_of_every_register_tile(name: str, fields: dict[str, int], cpu: Cpu) -> None:
    """One more row and one more channel than whole tiles take, on both sides of the product."""
    (rows, cols), lanes = fields.values(), cpu.lanes
    if name == "direct":
        fields = {"tile_h": 1, **fields}
    kernel = "1x1 s1 p0" if name == "pointwise" else "1x3 s1 p0x1"
    across, oc = (
        (cols * lanes + 1, 2 * rows + 1) if name == "planar" else (2 * rows + 1, cols * lanes + 1)
    )
    p = ConvProblem.parse(f"conv 1x3x2x{across} {oc}x{kernel} bias relu")
    template = templates()[name]
    layout = "NCHW" if name == "planar" else "NHWC"
    schedule = replace(template.heuristic(p, cpu), layout=layout, unroll=2, **fields)
    operands = random_operands(p, seed=3)
    found = run(p, template.program(p, schedule, cpu), operands)
    assert rms_error(found, reference(p, operands)) < tolerance(template, p, schedule)
