"""Kernels of small types are checked and timed like those of float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, U8
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import templates
from fastrun.tuner.measure.job import Job
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.measure.operands import Operands, Scratch
from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.measure.worker import compile_one, run_one
from fastrun.tuner.records.record import Outcome

QUICK = Protocol(warmup=0, blocks=2)


@pytest.mark.parametrize("types", ["u8s8>u8", "u8s8>f32", "u8s4>u8", "f32f16", "f32bf16", "bf16"])
def test_a_kernel_of_each_type_is_measured(types: str) -> None:
    p = ConvProblem.parse(f"conv 1x32x6x7 16x1x1 s1 p0 bias add relu {types}")
    with Measurer() as measurer:
        for name in ("naive", "direct", "pointwise"):
            template = templates()[name]
            schedule = template.text(template.heuristic(p, Cpu.host()))
            program = measurer.compile(p, schedule).result()
            job = measurer.job(p, program, protocol=QUICK)
            (result,) = measurer.sandbox.submit_all([job]).result()
            assert result.outcome is Outcome.CORRECT, (name, result.reason)


def test_one_wrong_sum_is_found(tmp_path: Path) -> None:
    """A single weight that is off by one makes an exact kernel wrong."""
    p = ConvProblem.parse("conv 1x32x6x7 16x1x1 s1 p0 bias u8s8>f32")
    template = templates()["pointwise"]
    with Scratch() as scratch:
        operands = Operands.make(p, scratch)
        text = template.text(template.heuristic(p, Cpu.host()))
        program = compile_one(operands, text, Cpu.host())
        weights = np.load(program.weights)
        weights[5] += 1
        np.save(program.weights, weights)
        (result,) = (run_one(Job(program, operands, protocol=QUICK), [0]),)
        assert result[0].outcome is Outcome.CORRECTNESS
        assert "not exact" in result[0].reason


def test_types_stay_themselves_between_processes() -> None:
    import pickle

    for dtype in (BF16, U8, replace(U8, name="other")):
        assert pickle.loads(pickle.dumps(dtype)) == dtype
    assert pickle.loads(pickle.dumps(BF16)) is BF16
