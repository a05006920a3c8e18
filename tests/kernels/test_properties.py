"""What convolution must do whatever the reference says: linearity, impulses, shifts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout, Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.template import KernelTemplate
from fastrun.kernels.registry import applicable, templates
from tests.support.agreement import assert_close
from tests.support.execution import reference, rms_error, run, tolerance

CPU = Cpu.host()
P = ConvProblem.parse("conv 1x8x12x13 16x3x3 s1 p1")
ALGORITHMS = applicable(P, CPU)


def convolution(template: KernelTemplate, p: ConvProblem = P):
    program = template.program(p, template.heuristic(p, CPU), CPU)
    return lambda operands: run(p, program, operands)


@pytest.mark.parametrize("template", ALGORITHMS, ids=lambda t: t.name)
def test_linear_in_the_input_and_in_the_weights(template: KernelTemplate) -> None:
    conv = convolution(template)
    a, b = random_operands(P, 1), random_operands(P, 2)
    both = conv({**a, "x": a["x"] + 2 * b["x"]})
    apart = conv(a) + 2 * conv({**a, "x": b["x"]})
    assert_close(both, apart)
    both = conv({**a, "weights": a["weights"] - b["weights"]})
    apart = conv(a) - conv({**a, "weights": b["weights"]})
    assert_close(both, apart)


@pytest.mark.parametrize("template", ALGORITHMS, ids=lambda t: t.name)
def test_an_impulse_returns_the_filter_turned_round(template: KernelTemplate) -> None:
    operands = random_operands(P, 3)
    operands["x"] = np.zeros_like(operands["x"])
    operands["x"][0, 5, 6, 7] = 1
    y = convolution(template)(operands)
    turned = operands["weights"][:, 5, ::-1, ::-1]
    assert_close(y[0, :, 5:8, 6:9], turned)
    y[0, :, 5:8, 6:9] = 0
    assert np.abs(y).max() < 1e-4 * np.abs(turned).max()


@pytest.mark.parametrize("template", ALGORITHMS, ids=lambda t: t.name)
def test_a_shifted_input_shifts_the_output(template: KernelTemplate) -> None:
    conv, operands = convolution(template), random_operands(P, 4)
    y = conv(operands)
    moved = conv({**operands, "x": np.roll(operands["x"], (2, 3), axis=(2, 3))})
    assert_close(moved[..., 4:-2, 5:-2], y[..., 2:-4, 2:-5])


@st.composite
def problems(draw: st.DrawFn) -> ConvProblem:
    side, few = st.integers(1, 21), st.integers(1, 3)
    groups = draw(st.sampled_from([1, 1, 1, 2, 5]))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    return ConvProblem(
        n=draw(st.integers(1, 2)),
        c=groups * draw(side),
        h=max(draw(side), spans[0] - pads[0] - pads[2], 1),
        w=max(draw(side), spans[1] - pads[1] - pads[3], 1),
        oc=groups * draw(side),
        kernel=kernel,
        stride=(draw(few), draw(few)),
        padding=pads,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        add=draw(st.booleans()),
        activation=draw(st.sampled_from(["", "relu", "relu6", "hardswish", "sigmoid"])),
    )


@settings(max_examples=25)
@given(problems())
def test_heuristics_on_any_problem(p: ConvProblem) -> None:
    operands = random_operands(p, seed=5)
    truth = reference(p, operands)
    for template in applicable(p, CPU):
        schedule = template.heuristic(p, CPU)
        found = run(p, template.program(p, schedule, CPU), operands)
        assert rms_error(found, truth) < tolerance(template, p, schedule), template.name


@given(
    st.sampled_from(["NCHW", "NHWC", "NCHW4c", "NCHW8c", "NCHW16c"]),
    st.tuples(*[st.integers(1, 9)] * 4),
    st.tuples(*[st.integers(0, 3)] * 4),
)
def test_placements_round_trip(layout: str, shape: tuple[int, ...], halo: tuple[int, ...]) -> None:
    where = Placement(Layout(layout), *shape, halo=halo)  # type: ignore[arg-type]
    tensor = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    buffer = where.pack(tensor)
    assert buffer.size == where.size
    np.testing.assert_array_equal(where.unpack(buffer), tensor)
    assert not where.halo_of(buffer).any()
    dense = replace(where, halo=(0, 0, 0, 0))
    assert dense.dense
    assert dense.size <= where.size


def test_nan_and_infinity_pass_through() -> None:
    for text in ("conv 1x8x6x6 16x3x3 s1 p1 relu", "conv 1x8x6x6 16x1x1 s1 p0 relu6"):
        p = ConvProblem.parse(text)
        for name in ("naive", "direct", "planar"):
            template = templates()[name]
            operands = random_operands(p, 6)
            operands["x"][0, 0, 2, 2] = np.nan
            y = run(p, template.program(p, template.heuristic(p, CPU), CPU), operands)
            assert np.isnan(y[0, :, 2, 2]).all(), name
