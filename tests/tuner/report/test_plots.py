"""Figures of searches, of the steps of networks, and of engines."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from fastrun.benchmarks import figures as comparisons
from fastrun.benchmarks.frames import engines_frame
from fastrun.benchmarks.race import EntryTimes
from fastrun.benchmarks.report import EngineRace
from fastrun.tuner.report import plots
from fastrun.tuner.report.frames import precision_frame
from fastrun.tuner.report.style import svg
from fastrun.tuner.store.frame import frame
from tests.support.records import record
from tests.support.synthetic import precisions


def entry(engine: str, *samples: float, overhead: float = 0.0) -> EntryTimes:
    return EntryTimes(engine, samples, 1, None, overhead, "")


HEATS = [
    EngineRace("small", "g", 1, (entry("ours", 1.0), entry("ort", 3.0, 3.0, 5.0), entry("mnn"))),
    EngineRace("large", "g", 1, (entry("ours", 4.0), entry("ort", 2.0))),
]


def test_engines_frame_is_beside_ours() -> None:
    table = engines_frame(HEATS)
    assert list(table["subject"]) == ["small", "large"]  # engines without times have no row
    assert list(table["times"]) == pytest.approx([3.0, 0.5])
    assert table["low"][0] == 3.0
    assert 3.0 < table["high"][0] <= 5.0


def test_engines_frame_takes_overhead_off_the_range_too() -> None:
    raced = EngineRace("x", "g", 1, (entry("ours", 1.0), entry("ort", 3.0, 3.0, overhead=1.0)))
    (row,) = engines_frame([raced]).itertuples()
    assert (row.low, row.times, row.high) == (2.0, 2.0, 2.0)


def test_figure_of_engines() -> None:
    text = svg(comparisons.engines(engines_frame(HEATS), "Title"))
    assert all(word in text for word in ("Title", ">small<", ">large<", ">ort<", "as long as ours"))


def test_figure_of_trials() -> None:
    records = [
        replace(record(), schedule=schedule, samples=(seconds,))
        for schedule, seconds in (("direct(layout=NHWC)", 2e-3), ("winograd(layout=NHWC)", 1e-3))
    ]
    text = svg(plots.trials(frame(records)))
    assert all(word in text for word in (">direct<", ">winograd<", ">best so far<"))


def test_figure_of_steps_keeps_the_longest_in_order() -> None:
    times = [5.0, 1.0, 4.0]
    table = pd.DataFrame(
        {
            "output": ["/first_output_0", "second", "third"],
            "algorithm": ["direct(rows=1)", "", "depthwise(rows=1) + pointwise(rows=2)"],
            "seconds": times,
            "share": [x / 10 for x in times],
        }
    )
    text = svg(plots.steps(table, most=2))
    assert "2 of 3 steps, 90 %" in text
    assert text.index(">first<") < text.index(">third<")
    assert ">second<" not in text
    assert ">direct<" in text
    assert ">depthwise + pointwise<" in text


def test_figure_of_precisions_names_what_matters() -> None:
    table = precision_frame(precisions())
    assert table["measured"].tolist() == [False] * 4 + [True] * 4
    assert table.index[table["chosen"]].tolist() == [6]
    text = svg(plots.precision(table))
    for words in (">float32<", ">chosen: 0.4 % lost<", ">fastest: 3.0 % lost<"):
        assert words in text
    assert "0.1 % lost" not in text
    alone = precision_frame({**precisions(), "chosen": 3})
    assert ">fastest, chosen: 3.0 % lost<" in svg(plots.precision(alone))
