"""Kernels that read channels through a table, from several tensors, in any order."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, pack_channels
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.registry import templates
from tests.support.execution import reference, rms_error, run, tolerance
from tests.support.graph_models import normal

CPU = Cpu.host()
L = CPU.lanes
GATHERING = [name for name, template in templates().items() if template.gathers]

# Tensors that channels are gathered from, and channels for which each has room.
TENSORS, PITCH = 3, 2 * L + 3

PROBLEMS = [
    f"conv 1x{L + 5}x5x7 {2 * L + 1}x1x1 s1 p0 bias relu",
    f"conv 1x{L + 5}x5x7 {L - 1}x1x1 s1 p0 bias add",
    "conv 1x12x6x6 9x1x1 s1 p0 g3 bias relu",
    "conv 1x12x6x5 10x3x3 s2 p1 bias",
]


@pytest.mark.parametrize("text", PROBLEMS)
@pytest.mark.parametrize("name", GATHERING)
def test_agrees_with_float64(name: str, text: str) -> None:
    p = ConvProblem.parse(text)
    template = templates()[name]
    if template.refusal(p, CPU):
        pytest.skip("does not apply")
    draw = random.Random(text)
    places = [(draw.randrange(TENSORS), draw.randrange(PITCH)) for _ in range(p.c)]
    one = Placement(NHWC, 1, PITCH, p.h, p.w, p.padding)
    stacked = replace(one, n=TENSORS)
    tensors = normal(TENSORS, PITCH, p.h, p.w)

    io = replace(Io.of(p, "NHWC"), src=one, gathered=True)
    schedule = replace(template.heuristic(p, CPU), layout="NHWC")
    program = template.build(p, schedule, CPU, io)
    table = pack_channels([tensor * stacked.n_stride + c for tensor, c in places])
    whole = replace(
        program,
        io=replace(io, src=stacked),
        pack_weights=lambda w: np.concatenate([table, program.pack_weights(w)]),
    )

    operands = random_operands(p, seed=1)
    gathered = np.stack([tensors[tensor, c] for tensor, c in places])[None]
    truth = reference(p, operands | {"x": gathered})
    found = run(p, whole, operands | {"x": tensors})
    assert rms_error(found, truth) < tolerance(template, p, schedule)
    assert np.array_equal(found, run(p, whole, operands | {"x": tensors}, threads=3))


@pytest.mark.parametrize("name", GATHERING)
def test_the_code_does_not_depend_on_the_channels(name: str) -> None:
    """So that layers of one shape share it, wherever they read."""
    p = ConvProblem.parse("conv 1x8x4x4 8x1x1 s1 p0")
    template = templates()[name]
    schedule = replace(template.heuristic(p, CPU), layout="NHWC")
    sources = (Placement(NHWC, 1, 24, 4, 4), Placement(NHWC, 1, 5, 4, 4, whole=24, first=0))
    built = [
        template.build(p, schedule, CPU, replace(Io.of(p, "NHWC"), src=src, gathered=True)).ir
        for src in sources
    ]
    assert built[0] == built[1]


@pytest.mark.parametrize("name", GATHERING)
def test_other_layouts_are_refused(name: str) -> None:
    p = ConvProblem.parse("conv 1x8x4x4 8x1x1 s1 p0")
    template = templates()[name]
    io = replace(Io.of(p, "NCHW"), src=Placement(NCHW, 1, 8, 4, 4), gathered=True)
    schedule = replace(template.heuristic(p, CPU), layout="NCHW")
    with pytest.raises(ScheduleError):
        template.build(p, schedule, CPU, io)
