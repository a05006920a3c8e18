"""Every algorithm on tensors that are ranges of channels of larger ones, with halos."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Placement, layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.processors import target
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.apart import compile_all
from fastrun.kernels.registry import templates
from tests.support.execution import reference, rms_error, run, tolerance

CPU = Cpu.host()
PROBLEMS = [
    "conv 1x20x9x11 28x3x3 s1 p1 bias add relu",
    "conv 2x32x7x7 32x1x1 s1 p0 bias add",
    "conv 1x24x8x8 24x3x3 s2 p1 g24 bias",
    "conv 1x40x9x8 28x3x3 s1 p0 bias add b1",
]
LAYOUTS = ("NCHW", "NHWC", "NCHW8c", "NCHW16c", "NCHW>NHWC", "NHWC>NCHW8c")
WIDER = (1, 2, 1, 1)


def ranged(p: ConvProblem, layout: str, wider: tuple[int, int, int, int]) -> Io:
    """All operands inside larger buffers; halos wider than needed by `wider`."""
    src, dst = layout_pair(layout)
    top, left, bottom, right = (a + b for a, b in zip(p.padding, wider, strict=True))
    x = Placement(src, p.n, p.c + 32, p.h, p.w, (top, left, bottom, right))
    y = Placement(dst, p.n, p.oc + 48, p.oh, p.ow, wider)
    other = Placement(dst, p.n, p.oc + 16, p.oh, p.ow, wider)
    return Io(x.part(16, p.c), y.part(32, p.oc), other.part(16, p.oc))


def takes(name: str, p: ConvProblem, layout: str, wider: tuple[int, int, int, int]) -> bool:
    """Whether an algorithm of the toolkit must build this."""
    src, dst = map(str, layout_pair(layout))
    whole_blocks = p.groups == 1 or {src, dst} <= {"NCHW", "NHWC"}
    if name in ("im2col", "pointwise"):
        same = src == dst or (name == "pointwise" and dst != "NCHW")
        return same and whole_blocks and wider != WIDER  # no gaps between rows
    return {
        "naive": layout == "NCHW",
        "winograd_naive": layout == "NCHW",
        "planar": layout == "NCHW",
        "binary": layout == "NHWC",
        "mec": layout == "NHWC",
        "direct": dst != "NCHW" and whole_blocks,
        "winograd": "NCHW" not in (src, dst) and whole_blocks,
        "depthwise": "NCHW" not in (src, dst),
        "strassen": "NCHW" not in (src, dst),
    }.get(name, False)


@pytest.mark.parametrize("text", PROBLEMS)
@pytest.mark.parametrize("name", templates())
def test_ranges_of_channels(name: str, text: str) -> None:
    p, template = ConvProblem.parse(text), templates()[name]
    if reason := template.refusal(p, CPU):
        pytest.skip(reason)
    operands = random_operands(p, seed=1)
    truth, built = reference(p, operands), 0
    for layout, wider in product(LAYOUTS, ((0, 0, 0, 0), WIDER)):
        try:
            schedule = replace(template.heuristic(p, CPU), layout=layout)
            program = template.build(p, schedule, CPU, ranged(p, layout, wider))
        except ScheduleError:
            assert not takes(name, p, layout, wider), f"{layout}, {wider}"
            continue
        built += 1
        for threads in (1, 3):
            found = run(p, program, operands, threads)
            assert rms_error(found, truth) < tolerance(template, p, schedule)
    assert built


def test_code_of_seven_products_is_that_of_one() -> None:
    """Products, register tiles and outputs of all halves share code, which is small."""
    p = ConvProblem.parse("conv 1x320x7x7 1280x1x1 bias relu6")
    cpu, template = target("x86-64-v4"), templates()["strassen"]
    program = template.program(p, template.heuristic(p, cpu), cpu)
    (code,) = compile_all([(program.ir, cpu)])
    assert len(code) < 24_000
