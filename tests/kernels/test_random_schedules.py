"""Kernels compute what they accept: random schedules of odd problems, for 4, 8 and 16 lanes.

`FASTRUN_TEST_SCALE=210 pytest tests/kernels/test_random_schedules.py` examines some 20,000 kernels.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.registry import templates
from tests.support.lanes import EVERY_CPU
from tests.support.random_schedules import Case, random_case

CASES = round(60 * float(os.environ.get("FASTRUN_TEST_SCALE", "1")))


@pytest.mark.parametrize("cpu", EVERY_CPU)
def test_what_is_accepted_is_right(cpu: Cpu) -> None:
    built: Counter[str] = Counter()
    for number in range(CASES):
        case = random_case(f"{number} {cpu.lanes}", cpu)
        program = case.program()
        if program is not None:
            built[case.template.name] += 1
            assert case.wrong(program) is None, case
    assert built.total() > CASES / 3


@pytest.mark.parametrize("cpu", EVERY_CPU)
@pytest.mark.parametrize("oc", [9, 15])
@pytest.mark.parametrize("name", ["direct", "pointwise"])
def test_vectors_narrower_than_their_block(name: str, oc: int, cpu: Cpu) -> None:
    """Each of a block's vectors is stored whole, whichever panel it is in."""
    p = ConvProblem.parse(f"conv 1x3x4x5 {oc}x1x1 s1 p0 bias")
    template = templates()[name]
    schedule = replace(template.heuristic(p, cpu), layout="NCHW16c", cols=1)
    case = Case(template, p, schedule, cpu, None)
    program = case.program()
    assert program is not None
    assert case.wrong(program) is None, case


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("direct", {"layout": "NCHW5c"}),
        ("direct", {"tile_h": 0}),
        ("direct", {"rows": -1}),
        ("direct", {"unroll": 900}),
        ("direct", {"prefetch": -1}),
        ("planar", {"ocs": 0}),
        ("planar", {"rows": 10**21}),
        ("im2col", {"rows": -1}),
        ("im2col", {"block": 0}),
        ("winograd", {"nr_tiles": 0}),
        ("winograd", {"points": "none"}),
        ("winograd_naive", {"m": 0}),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name: str, fields: dict[str, object]) -> None:
    p = ConvProblem.parse("conv 1x96x8x8 16x3x3 s1 p1 bias")
    schedule = replace(templates()[name].heuristic(p, Cpu.host()), **fields)
    with pytest.raises(ScheduleError) as refusal:
        templates()[name].program(p, schedule, Cpu.host())
    assert "\n" not in str(refusal.value)


def test_a_large_block_takes_no_more_memory_than_there_are_pixels() -> None:
    p = ConvProblem.parse("conv 1x8x8x8 16x3x3 s1 p1 bias")
    template = templates()["im2col"]
    schedule = template.heuristic(p, Cpu.host())
    whole, more = (
        template.program(p, replace(schedule, block=block), Cpu.host()) for block in (64, 10**9)
    )
    assert whole.local_bytes == more.local_bytes
