"""Whether kernels of integers give the outputs that the exact sums give."""

from __future__ import annotations

import numpy as np

from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Program
from fastrun.kernels.core.quantised import is_exact, trial_operands
from tests.support.execution import execute


def steps_off_by(p: ConvProblem, program: Program) -> float:
    """How far outputs are from those that the exact sums give."""
    operands, scales = trial_operands(p, seed=1)
    bias = operands["bias"] if p.bias else None
    add = operands["add"] if p.add else None
    sums = scales.sums(p, operands["x"], operands["weights"], bias)
    expected = scales.stored(p, sums, add)
    poison = int(expected.flat[0]) ^ 0x80 if expected.dtype == np.uint8 else 0
    given = {
        **operands,
        "packed_bias": scales.operand(p, operands["weights"], bias),
        "poison": poison,
    }
    found = execute(program, given, threads=2)
    return float(np.abs(found.astype(np.float64) - expected).max())


def steps_allowed(p: ConvProblem) -> float:
    """Exponentials differ in the last bit from NumPy's, which may move a tie by a step."""
    if is_exact(p):
        return 0.0
    return 1.0 if p.precision.dst.name == "u8" else 1e-5
