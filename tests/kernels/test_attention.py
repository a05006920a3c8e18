"""Attention against numpy in float64: heads, layouts of channels, masks, blocks of keys."""

from __future__ import annotations

import numpy as np
import pytest

import fastrun
from fastrun.kernels.core.attention import AttentionProblem, parse_problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Array, Placement
from fastrun.kernels.core.problem import ProblemError
from fastrun.kernels.core.reference import random_operands, truth
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import attention
from fastrun.kernels.ops.attention import Attention, Heads
from fastrun.kernels.registry import applicable, parse_schedule
from fastrun.search_spaces.space import space_for
from fastrun.search_spaces.untried import Untried
from tests.support.execution import execute, relative_error
from tests.support.graph_models import model, node
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, normal


def attended(spec: Attention, x: Array, y: Array, mask: Array | None) -> np.ndarray:
    """The result (n, heads * size, pixels)."""
    n = len(x)
    pixels = [a.reshape(n, a.shape[1], -1).astype(np.float64) for a in (x, y, y)]

    def head(a: np.ndarray, of: Heads, i: int) -> np.ndarray:
        start = of.start + i * of.step
        return a[:, start : start + of.size]

    found = []
    for i in range(spec.heads):
        q, k, v = (head(a, of, i) for a, of in zip(pixels, (spec.q, spec.k, spec.v), strict=True))
        scores = spec.scale * q.swapaxes(1, 2) @ k
        if mask is not None:
            groups, several = mask.shape[:2]
            scores = scores + np.tile(mask, (n // groups, 1, 1, 1))[:, i if several > 1 else 0]
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        found.append(v @ (powers / powers.sum(-1, keepdims=True)).swapaxes(1, 2))
    return np.concatenate(found, 1)


PACKED = Attention(3, 0.3, Heads(0, 8, 8), Heads(24, 8, 8), Heads(48, 8, 8))
CASES = [
    (PACKED, (2, 72, 1, 49), None, (1, 3)),
    (PACKED, (4, 72, 7, 5), None, (2, 1)),
    # Heads that lie apart, and values of another size, which leave a rest.
    (Attention(2, 1.5, Heads(1, 29, 12), Heads(13, 29, 12), Heads(0, 29, 21)), (1, 60, 1, 17),
     None, ()),
    # Two tensors, more keys than a block has.
    (Attention(2, 0.5, Heads(0, 20, 20), Heads(0, 20, 20), Heads(40, 36, 36)), (1, 40, 1, 70),
     (1, 120, 3, 201), ()),
    (Attention(1, 4.0, Heads(0, 4, 4), Heads(4, 4, 4), Heads(8, 3, 3)), (1, 11, 1, 1100), None,
     (1, 1)),
    # Heads of one channel and of two.
    (Attention(2, 1.0, Heads(0, 1, 1), Heads(2, 1, 1), Heads(4, 2, 2)), (1, 8, 1, 5), None, ()),
    (Attention(2, 1.0, Heads(0, 2, 2), Heads(4, 2, 2), Heads(8, 1, 1)), (1, 10, 1, 5), None, ()),
]  # fmt: skip


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize(("spec", "shape", "beside", "masks"), CASES)
def test_attention(
    spec: Attention,
    shape: tuple[int, int, int, int],
    beside: tuple[int, int, int, int] | None,
    masks: tuple[int, ...],
    cpu: Cpu,
) -> None:
    src = Placement(NHWC, *shape)
    context = Placement(NHWC, *beside) if beside else None
    other = context or src
    dst = Placement(NHWC, shape[0], spec.heads * spec.v.size, shape[2], shape[3])
    x = normal(*shape)
    operands = {"x": x, "add": normal(*beside)} if beside else {"x": x}
    mask = None
    if masks:
        mask = normal(*masks, shape[2] * shape[3], other.h * other.w)
        mask[..., 1:7] = -np.inf
        mask[..., ::2, : mask.shape[-1] // 2] = -100
        operands["weights"] = mask
    program = attention.build(spec, cpu, src, dst, context, mask.shape if masks else ())
    found = execute(program, operands, threads=3)
    truth = attended(spec, x, operands.get("add", x), mask)
    assert relative_error(found.reshape(truth.shape), truth) < 2e-5


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("shape", [(2, 3, 49, 49), (1, 1, 49, 49), (2, 1, 1, 49)])
def test_computed_masks(shape: tuple[int, int, int, int], cpu: Cpu) -> None:
    src, dst = Placement(NHWC, 2, 72, 7, 7), Placement(NHWC, 2, 24, 7, 7)
    x, mask = normal(2, 72, 7, 7), normal(*shape)
    mask[..., 3:5] = -np.inf
    program = attention.build(PACKED, cpu, src, dst, computed=Placement(NCHW, *shape))
    found = execute(program, {"x": x, "add": mask}, threads=3)
    truth = attended(PACKED, x, x, np.broadcast_to(mask, (*shape[:2], 49, 49)))
    assert relative_error(found.reshape(truth.shape), truth) < 2e-5


def test_refusals() -> None:
    x, y = Placement(NHWC, 1, 72, 1, 9), Placement(NHWC, 1, 24, 1, 9)
    attention.build(PACKED, CPU, x, y)
    for src, dst, mask, why in (
        (Placement(NCHW, 1, 72, 1, 9), y, (), "pixels in a row"),
        (Placement(NHWC, 1, 71, 1, 9), y, (), "exceed 71 channels"),
        (x, Placement(NHWC, 1, 23, 1, 9), (), "does not give"),
        (x, y, (1, 2, 9, 9), "a mask"),
    ):
        with pytest.raises(ScheduleError, match=why):
            attention.build(PACKED, CPU, src, dst, mask=mask)


@pytest.mark.parametrize(
    "text", ["attention 2x3x37x20 37x20 mask", "attention 1x2x9x8 75x12", "attention 1x1x5x4 5x3"]
)
def test_schedules(text: str) -> None:
    """Schedules of the space give the result of the problem; texts round-trip."""
    p = parse_problem(text)
    assert isinstance(p, AttentionProblem)
    assert str(p) == text
    operands = random_operands(p, seed=1)
    expected = truth(p, operands)
    space = space_for("flash", p, CPU)
    [template] = applicable(p, CPU)
    for schedule in [template.heuristic(p, CPU), *Untried(space, seed=0).sample(6)[:6]]:
        known, parsed = parse_schedule(template.text(schedule))
        assert (known, parsed) == (template, schedule)
        program = template.program(p, schedule, CPU)
        found = execute(program, {k: operands[k] for k in ("x", "weights", "add")}, threads=2)
        assert relative_error(found.reshape(expected.shape), expected) < 1e-5, schedule


def test_texts_that_are_no_problem() -> None:
    for text in ("attention 1x2x3 4x5", "attention 1x1x5x4 5x3 relu", "attention 1x0x5x4 5x3"):
        with pytest.raises(ProblemError):
            parse_problem(text)


def test_weights_are_never_subnormal() -> None:
    """Masks of -100 would make subnormal numbers, whose products take Intel's cores very long."""
    scores = np.zeros((1, 3, 5, 40), np.float32)
    scores[..., 1::4], scores[..., 2::4], scores[..., 3::4] = -100, -95, -84
    proto = model([node("Softmax", "x", "y", axis=-1)], {}, shape=scores.shape)
    found = fastrun.load(proto).run({"x": scores})["y"]
    masked = found[scores < -90]
    assert (masked == 0).all()
    assert (found[scores == -84] > 2.0**-126).all()
    assert np.allclose(found.sum(axis=-1), 1)
