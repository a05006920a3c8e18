"""Tables for notebooks and reports."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.records.record import Outcome
from fastrun.tuner.report.frames import best_frame
from fastrun.tuner.store.frame import frame
from fastrun.tuner.store.standing import Standing
from tests.support.records import PROBLEM, record

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


def test_best_frame_compares_with_naive_and_heuristic() -> None:
    naive = record(1, [8e-3], schedule="naive()", baseline=True)
    heuristic, best = record(2, [4e-3], heuristic=True), record(3, [3e-3, 2e-3, 9e-3, 2e-3])
    known, unknown = Standing(P, 3, naive, heuristic, best), Standing(OTHER, 1, None, None, None)
    table = best_frame([known, unknown], peak=100e9)
    row, nothing = table.iloc[0], table.iloc[1]
    assert (row["problem"], row["count"], row["winner"]) == (PROBLEM, 3, best.schedule)
    assert (row["naive"], row["heuristic"], row["best"]) == (8e-3, 4e-3, 2e-3)
    assert (row["p10"], row["samples"]) == (2e-3, 4)
    assert row["p90"] == pytest.approx(7.2e-3)
    assert (row["speedup_naive"], row["speedup_heuristic"]) == (4, 2)
    assert row["gflops"] == pytest.approx(P.flops / 2e-3 / 1e9)
    assert row["share"] == pytest.approx(P.flops / 2e-3 / 100e9)
    assert (nothing["problem"], nothing["count"], nothing["winner"]) == (str(OTHER), 1, "")
    assert nothing[["naive", "heuristic", "best", "gflops", "speedup_naive"]].isna().all()


def test_best_frame_of_nothing_has_its_columns() -> None:
    assert list(best_frame([]).columns) == list(best_frame([Standing(P, 1, None, None, None)]))
