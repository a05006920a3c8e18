"""What errs by a little more than `max_error` leads no search."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.records.record import Errors, Limits
from fastrun.tuner.search.options import SearchOptions
from fastrun.tuner.search.problem_search import ProblemSearch
from tests.support.records import record

P = ConvProblem.parse("conv 1x16x8x8 16x3x3 s1 p1 bias")


@pytest.mark.parametrize(("rms", "allowed"), [(9e-6, True), (1.1e-5, False), (9e-4, False)])
def test_what_errs_more_than_allowed_does_not_lead(rms: float, allowed: bool) -> None:
    options = SearchOptions(limits=Limits(error=1e-5))
    search = ProblemSearch(P, 1, Cpu.host(), options=options)
    made = record(problem=str(P), schedule=search.heuristic, samples=(1e-6,) * 3)
    made = replace(made, errors=Errors(10 * rms, rms, 0.0))
    search.tell(made)
    assert (search.incumbent is not None) == allowed
    assert Limits(error=1e-5).allow(made) == allowed
