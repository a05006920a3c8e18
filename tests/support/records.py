"""Records to test with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrun.tuner.records.record import Errors, Outcome, Record

PROBLEM = "conv 1x64x56x56 64x3x3 s1 p1"


def placed(samples: int, processes: int) -> dict[str, tuple[int, ...]]:
    """Fields of a record whose samples several processes took, as many each."""
    rounds = samples // processes
    return {
        "processes": tuple(p for p in range(processes) for _ in range(rounds)),
        "rounds": tuple(range(rounds)) * processes,
    }


def record(mr: int = 6, samples: Sequence[float] = (3e-3, 1e-3, 2e-3), **fields: Any) -> Record:
    """A correct record of `direct` with `mr` as its only parameter; `fields` override."""
    usual: dict[str, Any] = {
        "problem": PROBLEM,
        "schedule": f"direct(layout=NHWC, mr={mr})",
        "machine": "machine",
        "threads": 1,
        "regime": "hot",
        "toolchain": "llvm 1, kernels 1",
        "ir_hash": f"code {mr}",
        "outcome": Outcome.CORRECT,
        "samples": tuple(samples),
        "errors": Errors(1e-6, 1e-7, -1e-9),
        "seconds": {"build": 0.01, "compile": 0.02, "verify": 0.03, "measure": 0.04},
        "time": "2026-01-01T00:00:00.000000+00:00",
    }
    return Record(**(usual | fields))
