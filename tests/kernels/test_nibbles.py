"""Dense layers with weights of four bits compute what the dequantised weights give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastrun.kernels.core import processors
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Placement
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import nibbles
from fastrun.kernels.ops.nibbles import Nibbles
from tests.support.execution import execute, relative_error
from tests.support.lanes import RUN_HERE

AVX2 = replace(Cpu.avx2(), model=Cpu.host().model, lanes=8, registers=16)
CPUS = [*RUN_HERE, *([AVX2] if Cpu.host().lanes >= 8 else [])]


@pytest.mark.parametrize("cpu", CPUS, ids=lambda c: f"{c.lanes} lanes {c.name}")
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("images", "outputs", "depth", "block"),
    [(1, 37, 96, 32), (2, 16, 75, 32), (5, 9, 20, 32), (1, 64, 256, 128), (3, 1, 31, 16)],
)
def test_products(images: int, outputs: int, depth: int, block: int, zeros: bool, cpu: Cpu) -> None:
    rng = np.random.default_rng(7)
    blocks = -(-depth // block)
    stored = rng.integers(0, 16, (outputs, depth))
    stored[:, ::5] = rng.choice([0, 15], (outputs, len(range(0, depth, 5))))
    scale = rng.uniform(0.01, 2.0, (outputs, blocks)).astype(np.float32)
    zero = rng.integers(0, 16, (outputs, blocks)) if zeros else np.full((outputs, blocks), 8)
    each = np.arange(depth) // block
    weights = (stored - zero[:, each]) * scale[:, each].astype(np.float64)
    x = rng.standard_normal((images, depth, 1, 1), np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    src, dst = Placement(NHWC, images, depth, 1, 1), Placement(NCHW, images, outputs, 1, 1)
    program = nibbles.build(Nibbles(block, zeros, True, "relu"), cpu, src, dst)
    given = {"x": x, "bias": bias, "weights": nibbles.operands(stored, scale, zero)}
    found = execute(program, given)[:, :, 0, 0]
    truth = np.maximum(x[:, :, 0, 0].astype(np.float64) @ weights.T + bias, 0)
    assert relative_error(found, truth) < 2e-6


def test_weights_stay_small() -> None:
    """0.5 bytes for a weight and 4 for the scale of a block of 32."""
    src, dst = Placement(NHWC, 1, 256, 1, 1), Placement(NCHW, 1, 64, 1, 1)
    program = nibbles.build(Nibbles(32), Cpu.host(), src, dst)
    given = nibbles.operands(np.zeros((64, 256)), np.ones((64, 8)), np.full((64, 8), 8))
    assert program.pack_weights(given).nbytes == 64 * (256 // 2 + 8 * 4)


def test_features_apart_are_refused() -> None:
    src, dst = Placement(NHWC, 1, 8, 2, 2), Placement(NCHW, 1, 4, 1, 1)
    with pytest.raises(ScheduleError, match="do not follow one another"):
        nibbles.build(Nibbles(32), Cpu.host(), src, dst)


def test_a_level_with_avx512_looks_weights_up() -> None:
    """Its feature string does not name what the level has."""
    src, dst = Placement(NHWC, 1, 64, 1, 1), Placement(NCHW, 1, 32, 1, 1)
    for target in ("x86-64-v4", "x86-64-v4+vnni"):
        program = nibbles.build(Nibbles(32), processors.target(target), src, dst)
        assert "llvm.x86.avx512.permvar.sf.512" in program.ir
    for cpu in (processors.target("x86-64-v3"), replace(processors.target("x86-64-v3"), lanes=16)):
        assert "avx512" not in nibbles.build(Nibbles(32), cpu, src, dst).ir
