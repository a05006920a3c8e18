"""Products of rounded rows with weights of few bits in blocks are those of their integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Placement
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import blocks
from fastrun.kernels.ops.blocks import Blocks
from tests.support.execution import execute, relative_error
from tests.support.lanes import RUN_HERE

AVX2 = replace(Cpu.avx2(), model=Cpu.host().model, lanes=8, registers=16)
AVX512 = replace(Cpu.avx512(), model=Cpu.host().model)
WIDTH = Cpu.host().lanes
CPUS = [*RUN_HERE, *([AVX2] if WIDTH >= 8 else []), *([AVX512] if WIDTH >= 16 else [])]


def rounded(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as signed bytes, and the scale of each block, in float32 as the kernel computes."""
    rows, depth = x.shape
    wide = np.zeros((rows, -(-depth // block), block), np.float32)
    wide.reshape(rows, -1)[:, :depth] = x
    top = np.abs(wide).max(axis=2)
    inverse = np.float32(127) / np.maximum(top, np.float32(1e-30))
    return np.rint(wide * inverse[..., None]), top * np.float32(1 / 127)


@pytest.mark.parametrize("cpu", CPUS, ids=lambda c: f"{c.lanes} lanes {c.name}")
@pytest.mark.parametrize(
    ("bits", "block", "zeros"),
    [(4, 32, False), (4, 16, True), (4, 128, True), (2, 16, False), (2, 64, True), (8, 32, False),
     (8, 256, True)],
)  # fmt: skip
def test_sums_of_integers(bits: int, block: int, zeros: bool, cpu: Cpu) -> None:
    """Inputs are largest where weights are, so that sums of 16 bits would saturate."""
    rng, top = np.random.default_rng(7), 2**bits
    for images, outputs, depth in ((1, 37, 300), (7, 18, 256), (3, 1, 31)):
        count = -(-depth // block)
        stored = rng.integers(0, top, (outputs, depth))
        stored[::3] = rng.choice([0, top - 1], (len(stored[::3]), 1))
        zero = (
            rng.integers(0, top, (outputs, count)) if zeros else np.full((outputs, count), top // 2)
        )
        # Powers of two, so that nothing is rounded but the sum of the blocks.
        scale = 2.0 ** rng.integers(-3, 3, (outputs, count)).astype(np.float32)
        x = rng.standard_normal((images, depth)).astype(np.float32)
        x[:, ::2] = np.abs(x).max(axis=1, keepdims=True)
        x[0, :block] = 0
        bytes_, steps = rounded(x, block)
        wide = np.zeros((outputs, count, block))
        wide.reshape(outputs, -1)[:, :depth] = stored
        sums = np.einsum("nbk,obk->nob", bytes_, wide - zero[..., None])
        bias = rng.standard_normal(outputs).astype(np.float32)
        truth = (sums * steps[:, None].astype(np.float64) * scale).sum(axis=2) + bias
        src, dst = Placement(NHWC, images, depth, 1, 1), Placement(NCHW, images, outputs, 1, 1)
        program = blocks.build(Blocks(bits, block, zeros, True), cpu, src, dst)
        given = {
            "x": x.reshape(images, depth, 1, 1),
            "bias": bias,
            "weights": blocks.operands(stored, scale, zero),
        }
        found = execute(program, given, threads=2)[:, :, 0, 0]
        assert relative_error(found, truth) < 4e-7 * max(1, count**0.5)


def test_a_block_alone_is_exact() -> None:
    """One block, scales of powers of two: the result is the integer sum to the bit."""
    rng, block = np.random.default_rng(3), 64
    for cpu in CPUS:
        stored = rng.integers(0, 16, (40, block))
        x = rng.integers(-127, 128, (2, block)).astype(np.float32)
        x[:, 0] = 127
        src, dst = Placement(NHWC, 2, block, 1, 1), Placement(NCHW, 2, 40, 1, 1)
        program = blocks.build(Blocks(4, block), cpu, src, dst)
        one = np.ones((40, 1))
        given = {"x": x.reshape(2, block, 1, 1), "weights": blocks.operands(stored, one, 8 * one)}
        found = execute(program, given)[:, :, 0, 0]
        step = np.float32(127) * np.float32(1 / 127)
        assert (found == (x @ (stored - 8.0).T).astype(np.float32) * step).all()


def test_rows_that_are_not_finite_stay_so() -> None:
    x = np.ones((2, 32, 1, 1), np.float32)
    x[0, 5], x[1, 7] = np.nan, np.inf
    src, dst = Placement(NHWC, 2, 32, 1, 1), Placement(NCHW, 2, 16, 1, 1)
    program = blocks.build(Blocks(4, 32), Cpu.host(), src, dst)
    ones = np.ones((16, 1))
    given = {"x": x, "weights": blocks.operands(np.ones((16, 32)), ones, 8 * ones)}
    assert np.isnan(execute(program, given)).all()


def test_weights_stay_small() -> None:
    src, dst = Placement(NHWC, 1, 256, 1, 1), Placement(NCHW, 1, 64, 1, 1)
    for bits in blocks.BITS:
        program = blocks.build(Blocks(bits, 32), Cpu.host(), src, dst)
        given = blocks.operands(np.zeros((64, 256)), np.ones((64, 8)), np.full((64, 8), 8))
        assert program.pack_weights(given).nbytes == 64 * (256 * bits // 8 + 8 * 4)


def test_odd_blocks_are_refused() -> None:
    src, dst = Placement(NHWC, 1, 40, 1, 1), Placement(NCHW, 1, 4, 1, 1)
    with pytest.raises(ScheduleError, match="blocks are multiples of 16"):
        blocks.build(Blocks(4, 20), Cpu.host(), src, dst)
