"""Two operators in bands with bytes between them give the bits that each gives alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, pack_bias
from fastrun.kernels.core.quantised import trial_operands
from fastrun.kernels.core.scales import Quantisation, scales
from fastrun.kernels.ops import bands, pool
from fastrun.kernels.ops.pool import Pool
from fastrun.kernels.registry import templates
from tests.support.execution import execute
from tests.support.lanes import CPUS

FIRST = "conv 2x12x17x9 24x3x3 s1 p1 bias relu u8s8>u8"
GROUPED = "conv 1x32x15x9 32x3x3 s2 p1 g8 bias relu6 u8s7>u8"
THEN = ["conv {}x{}x{}x{} 40x1x1 s1 p0 bias u8s8>u8", "conv {}x{}x{}x{} 10x1x1 s2 p0 bias u8s8>f32"]
POOLS = [Pool("max", (3, 3), (2, 2), (1, 1, 1, 1)), Pool("average", (2, 3), (1, 2), (1, 0, 0, 1))]


def stepwise(
    p: ConvProblem, cpu: Cpu, io: Io, operands: dict[str, np.ndarray], x: np.ndarray
) -> np.ndarray:
    """The output of a convolution alone."""
    template = templates()["direct"]
    program = template.build(p, template.heuristic(p, cpu), cpu, io)
    return execute(program, {**operands, "x": x, "poison": 1})


@pytest.mark.parametrize("cpu", CPUS[1:], ids=lambda cpu: f"{cpu.lanes} lanes")
@pytest.mark.parametrize("text", [FIRST, GROUPED])
@pytest.mark.parametrize("then", [*THEN, *POOLS], ids=str)
def test_bytes_between_two_operators(text: str, then: str | Pool, cpu: Cpu) -> None:
    p, template = ConvProblem.parse(text), templates()["direct"]
    known, grids = trial_operands(p, seed=1)
    src = Io.of(p, "NHWC").src
    mid = replace(Io.of(p, "NHWC").dst, zero=grids.dst_zero)
    first = {
        "weights": known["weights"],
        "packed_bias": pack_bias(grids.operand(p, known["weights"], known["bias"])),
    }
    schedule = replace(template.heuristic(p, cpu), layout="NHWC")
    one = bands.convolution(p, template, schedule, cpu)
    between = stepwise(p, cpu, Io(src, mid, mid), first, known["x"])
    if isinstance(then, Pool):
        top, left, bottom, right = then.padding
        rows = (p.oh + top + bottom - then.kernel[0]) // then.stride[0] + 1
        columns = (p.ow + left + right - then.kernel[1]) // then.stride[1] + 1
        dst = Placement(mid.layout, p.n, p.oc, rows, columns)
        bias = scales(Quantisation(0.3, grids.dst_zero), Quantisation(0.2, 9))
        second = {"weights": np.zeros(0, np.int8), "packed_bias": pack_bias(bias)}
        two = bands.pooling(then, p.oh, rows, cpu, mid.dtype)
        alone = pool.build(then, cpu, mid, dst)
        expected = execute(alone, {**second, "x": between, "poison": 1})
    else:
        q = ConvProblem.parse(then.format(p.n, p.oc, p.oh, p.ow))
        more, others = trial_operands(q, seed=2)
        bias = others.operand(q, more["weights"], more["bias"])
        second = {"weights": more["weights"], "packed_bias": pack_bias(bias)}
        dst = Io.of(q, "NHWC").dst
        late = replace(template.heuristic(q, cpu), layout="NHWC")
        two = bands.convolution(q, template, late, cpu)
        expected = stepwise(q, cpu, Io(mid, dst, dst), second, between)
    operands = {
        "x": known["x"],
        "weights": bands.join_weights(first["weights"], second["weights"]),
        "packed_bias": np.concatenate([first["packed_bias"], second["packed_bias"]]),
        "poison": 1,
    }
    joined = bands.join_biases(grids.operand(p, known["weights"], known["bias"]), bias)
    assert pack_bias(joined).tobytes() == operands["packed_bias"].tobytes()
    for rows in (1, 3, 8):
        fused = bands.build(one, two, rows, cpu, Io(src, dst, dst), mid)
        for threads in (1, 3):
            assert np.array_equal(execute(fused, operands, threads), expected)


@pytest.mark.parametrize("cpu", CPUS[1:], ids=lambda cpu: f"{cpu.lanes} lanes")
@pytest.mark.parametrize(
    ("kernel", "then"),
    [
        ("3x3 s1 p1", "24x1x1 s1 p0 bias"),
        ("5x5 s1 p2", "24x1x1 s1 p0 bias"),
        ("3x3 s1 p1", "128x3x3 s1 p0 g128 bias"),
    ],
)
def test_depthwise_kernels_of_other_heights_pack_other_weights(
    kernel: str, then: str, cpu: Cpu
) -> None:
    each = templates()
    p = ConvProblem.parse(f"conv 1x128x7x7 128x{kernel} g128 bias relu6 u8s8>u8")
    q = ConvProblem.parse(f"conv 1x128x7x7 {then} u8s8>u8")
    known, grids = trial_operands(p, seed=1)
    more, others = trial_operands(q, seed=2)
    bias = grids.operand(p, known["weights"], known["bias"])
    second_bias = others.operand(q, more["weights"], more["bias"])
    src, dst = Io.of(p, "NHWC").src, Io.of(q, "NHWC").dst
    mid = replace(Io.of(p, "NHWC").dst, zero=grids.dst_zero)
    schedules = dict[str, Any]()
    for name, problem in (("depthwise", p), ("direct", q)):
        schedules[name] = replace(each[name].heuristic(problem, cpu), layout="NHWC")
    if cpu.lanes == 16:  # registers for tiles of two rows, of which bands of three leave one
        schedules["depthwise"] = replace(schedules["depthwise"], tile_h=2)
    late = "depthwise" if q.groups > 1 else "direct"
    alone = each["depthwise"].build(p, schedules["depthwise"], cpu, Io(src, mid, mid))
    first = {"weights": known["weights"], "packed_bias": pack_bias(bias)}
    between = execute(alone, {**first, "x": known["x"], "poison": 1})
    second = {"weights": more["weights"], "packed_bias": pack_bias(second_bias)}
    alone = each[late].build(q, schedules[late], cpu, Io(mid, dst, dst))
    expected = execute(alone, {**second, "x": between, "poison": 1})
    one = bands.convolution(p, each["depthwise"], schedules["depthwise"], cpu)
    two = bands.convolution(q, each[late], schedules[late], cpu)
    operands = {
        "x": known["x"],
        "weights": bands.join_weights(known["weights"], more["weights"]),
        "packed_bias": pack_bias(bands.join_biases(bias, second_bias)),
        "poison": 1,
    }
    for rows in (7, 4, 3, 2):  # of 7 rows or 5, so that bands differ in height
        fused = bands.build(one, two, rows, cpu, Io(src, dst, dst), mid)
        for threads in (1, 2):
            assert np.array_equal(execute(fused, operands, threads), expected)
