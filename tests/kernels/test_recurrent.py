"""Recurrent layers against their steps in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastrun.graph.reference.recurrence import recurrence
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F16
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops.recurrent import GATES, Recurrent, recurrent
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, assert_close, normal, run


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("cell", GATES)
def test_every_cell(cell: str, cpu: Cpu) -> None:
    """Hidden values that are no whole vectors, images that are no whole tiles, both directions."""
    for batch, hidden, given in ((1, 37, False), (7, 21, True)):
        op = Recurrent(cell, (False, True), cell == "lstm")
        rows = op.gates * hidden
        x, weights = normal(5, batch, 2 * rows), 0.3 * normal(2, rows, hidden)
        bias = normal(2, hidden) if cell == "gru" else None
        initial = normal(op.states, 2, batch, hidden) if given else None
        truth = recurrence(op, x.astype(float), weights.astype(float), bias, initial)
        dst = Strided.row_major(truth.shape)
        before = None if initial is None else Strided.row_major(initial.shape)
        program = recurrent(op, cpu, Strided.row_major(x.shape), dst, before)
        found = run(program, dst, x, initial, weights, bias)
        assert_close(found, truth, 16, 3e-6)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("cell", GATES)
def test_weights_of_16_bits(cell: str, cpu: Cpu) -> None:
    """Results are those of the rounded weights, also where hidden values differ in size."""
    op, batch, hidden = Recurrent(cell, (False, True)), 2, 21
    x, weights = normal(4, batch, 2 * op.gates * hidden), 0.3 * normal(2, op.gates * hidden, hidden)
    weights *= np.float32([1e-9, 1.0, 1e-3])[np.arange(op.gates * hidden) % 3][:, None]
    bias = normal(2, hidden) if cell == "gru" else None
    mantissas, exponents = np.frexp(weights)
    near = np.ldexp(np.rint(mantissas * 2**11) / 2**11, exponents)  # of eleven bits
    for dtype, rounded in ((F16, near), (BF16, BF16.decode(BF16.encode(weights)))):
        truth = recurrence(op, x.astype(float), rounded.astype(float), bias, None)
        dst = Strided.row_major(truth.shape)
        program = recurrent(op, cpu, Strided.row_major(x.shape), dst, None, dtype)
        assert_close(run(program, dst, x, None, weights, bias), truth, 16, 3e-6)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("cell", [cell for cell in GATES if cell != "gru_before"])
@pytest.mark.parametrize("backwards", [False, True])
def test_cores_share_a_step(cell: str, backwards: bool, cpu: Cpu) -> None:
    """Weights that are large for the cache: every step is a stage with a task for each panel."""
    batch, hidden, steps = 2, 149, 6
    op = Recurrent(cell, (backwards,), cell == "lstm")
    rows = op.gates * hidden
    x, weights = normal(steps, batch, rows), 0.1 * normal(1, rows, hidden)
    bias = normal(1, hidden) if cell == "gru" else None
    initial = normal(op.states, 1, batch, hidden)
    truth = recurrence(op, x.astype(float), weights.astype(float), bias, initial)
    dst, before = Strided.row_major(truth.shape), Strided.row_major(initial.shape)
    shared = replace(cpu, cores=2, l2=1 << 16)
    program = recurrent(op, shared, Strided.row_major(x.shape), dst, before)
    assert len(program.stages) == 1 + steps + op.keeps_cell
    assert program.stages[1].tasks > 1
    assert_close(run(program, dst, x, initial, weights, bias), truth, 16, 3e-6)


def test_refusals() -> None:
    x = Strided.row_major((5, 1, 32))
    for op, shape in (
        (Recurrent("lstm"), (6, 1, 1, 8)),
        (Recurrent("lstm", (True, False)), (5, 2, 1, 4)),
        (Recurrent("cell"), (5, 1, 1, 8)),
    ):
        with pytest.raises(ScheduleError):
            recurrent(op, CPU, x, Strided.row_major(shape))
