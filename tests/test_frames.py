"""Tables for notebooks and reports."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from kernels.core.problem import ConvProblem
from tests.records import PROBLEM, record
from tuner.database import Database
from tuner.frames import best_frame, frame
from tuner.record import Outcome

P = ConvProblem.parse(PROBLEM)
OTHER = ConvProblem.parse("conv 1x8x8x8 8x1x1 s1 p0")


def test_one_row_per_record_in_seconds_and_gflops() -> None:
    records = [record(), record(7, (), outcome=Outcome.TIMEOUT, errors=None, seconds={})]
    table = frame(records)
    assert list(table["outcome"]) == ["correct", "timeout"]
    assert list(table["samples"]) == [3, 0]
    first, second = table.iloc[0], table.iloc[1]
    assert (first["min"], first["median"], first["seconds_per_call"]) == (1e-3, 2e-3, 1.5e-3)
    assert first["gflops"] == pytest.approx(P.flops / 1.5e-3 / 1e9)
    assert first["compile_seconds"] == 0.02
    missing = ["seconds_per_call", "min", "median", "gflops", "error_max", "compile_seconds"]
    assert second[missing].isna().all()
    assert first["time"] == pd.Timestamp("2026-01-01", tz="UTC")
    assert "mr" not in table


def test_parameters_become_columns_on_request() -> None:
    odd = record(schedule="winograd(layout=NCHW8c, m=4, fused=yes, stage=9)")
    table = frame([record(6), odd], parameters=True)
    assert list(table["layout"]) == ["NHWC", "NCHW8c"]
    assert table["mr"][0] == 6
    assert np.isnan(table["mr"][1])
    assert table["fused"][1] is True
    assert list(table["stage"]) == ["screen", "screen"]


def test_no_records_make_an_empty_table_with_its_columns() -> None:
    assert list(frame([]).columns) == [c for c in frame([record()]) if not c.endswith("_seconds")]


def test_best_frame_compares_with_naive_and_the_best_heuristic() -> None:
    with Database("sqlite://") as database:
        for r in (
            record(1, [8e-3], schedule="naive()", baseline=True),
            record(2, [1e-3], schedule="winograd_whole()", baseline=True),
            record(3, [6e-3], heuristic=True),
            record(4, [4e-3], heuristic=True, schedule="im2col()"),
            record(5, [2e-3]),
        ):
            database.add(r)
        counted = best_frame(database, Counter({P: 3, OTHER: 1}), "machine", 1, "hot")
        listed = best_frame(database, [P, OTHER, P, P], "machine", 1, "hot")
    pd.testing.assert_frame_equal(counted, listed)
    row, nothing = counted.iloc[0], counted.iloc[1]
    assert (row["problem"], row["count"]) == (PROBLEM, 3)
    assert (row["naive"], row["heuristic"], row["best"]) == (8e-3, 4e-3, 2e-3)
    assert (row["speedup_naive"], row["speedup_heuristic"]) == (4, 2)
    assert row["gflops"] == pytest.approx(P.flops / 2e-3 / 1e9)
    assert row["winner"] == record(5).schedule
    assert (nothing["problem"], nothing["count"], nothing["winner"]) == (str(OTHER), 1, "")
    assert nothing[["naive", "heuristic", "best", "gflops"]].isna().all()


def test_best_frame_of_no_problems_has_its_columns() -> None:
    with Database("sqlite://") as database:
        assert "speedup_naive" in best_frame(database, [], "machine", 1, "hot")
