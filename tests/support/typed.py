"""Tensors of small element types for tests, and their scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fastrun.kernels.core.dtype import F32, U8, DType
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.program import Program
from fastrun.kernels.core.scales import Quantisation, scales
from fastrun.kernels.core.strided import Ints, Strided
from tests.support.execution import execute

SRC, DST, ADD = Quantisation(0.05, 117), Quantisation(0.037, 93), Quantisation(0.021, 140)

POISON = 85


def values(dtype: DType, *shape: int) -> np.ndarray:
    """Random numbers that elements of this type have; all of u8."""
    rng = np.random.default_rng(sum(shape))
    if dtype is U8:
        return rng.integers(0, 256, shape, np.uint8)
    return dtype.decode(dtype.encode(3 * rng.standard_normal(shape, np.float32))).astype(np.float32)


def with_scales(**operands: Any) -> dict[str, Any]:
    """Operands of `execute` together with the scales of src, add and dst."""
    slack = np.zeros(READ_SLACK, np.float32)
    return {
        "packed_bias": np.concatenate([scales(SRC, DST, ADD), slack]),
        "poison": POISON,
        **operands,
    }


def view(shape: Ints, dtype: DType = U8, last: int | None = None) -> Strided:
    """A tensor in row-major order, or with axis `last` closest together."""
    order = [axis for axis in range(len(shape)) if axis != last]
    order += [] if last is None else [last]
    packed = Strided.row_major(tuple(shape[axis] for axis in order))
    back = tuple(order.index(axis) for axis in range(len(shape)))
    return replace(packed.transpose(back), dtype=dtype)


def run(
    program: Program,
    dst: Strided,
    x: tuple[np.ndarray, Strided],
    add: tuple[np.ndarray, Strided] | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """The elements of `dst`, written by one thread and by three with the same result.

    Operands are tensors with the views in which they lie.
    """
    operands = with_scales(x=_laid(*x)[..., : program.io.src.size])
    if add is not None:
        operands["add"] = _laid(*add)[..., : program.io.add.size]
    if weights is not None:
        operands["weights"] = weights
    found = execute(program, operands).reshape(-1)
    assert np.array_equal(found, execute(program, operands, threads=3).reshape(-1), equal_nan=True)
    written = _decoded(dst).view(found)
    result, before = written.copy(), np.nan
    if dst.dtype is not F32:
        before = dst.dtype.decode(np.full(1, POISON, dst.dtype.numpy))[0]
    written[...] = before
    assert np.array_equal(found, np.full_like(found, before), equal_nan=True), "wrote between"
    return result


def _laid(x: np.ndarray, where: Strided) -> np.ndarray:
    """The buffer in which a tensor lies as `where`, as one row of pixels."""
    buffer = np.zeros(where.extent, x.dtype)
    _decoded(where).view(buffer)[...] = x
    return buffer.reshape(1, 1, 1, -1)


def _decoded(where: Strided) -> Strided:
    """The same view of numbers, which are float32 unless they are bytes."""
    return where if where.dtype is U8 else replace(where, dtype=F32)
