"""The figures of `fastrun.plot`, of made-up records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from fastrun import Database, DatabaseError, load, plot
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.networks.targets import read_target
from fastrun.tuner.precision.kept import front_file
from fastrun.tuner.records.record import Conditions
from tests.graph.test_networks_run import residual
from tests.support.synthetic import precisions, records

LAYERS = ["conv 1x32x14x14 32x3x3 s1 p1 bias relu", "conv 1x32x14x14 64x1x1 s1 p0 bias"]
FIGURES = [
    plot.algorithms,
    plot.convergence,
    plot.importance,
    plot.pareto,
    plot.roofline,
    plot.share_of_peak,
    plot.speedups,
    plot.trials,
    plot.tuning_gains,
]


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with Database("sqlite://") as opened:
        for record in records([ConvProblem.parse(text) for text in LAYERS], trials=180):
            opened.add(record)
        yield opened


@pytest.mark.parametrize("draw", FIGURES)
def test_a_notebook_shows_it(draw: Callable[..., plot.Figure], database: Database) -> None:
    figure = draw(database, LAYERS)
    assert any(axes.has_data() for axes in figure.axes)
    picture, size = figure._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert size["width"] == 440


def test_layers_are_those_of_the_targets(database: Database) -> None:
    (axes,) = plot.speedups(database, LAYERS[1]).axes
    assert len(axes.get_yticks()) == 1


def test_what_was_not_measured_is_an_error_that_says_so(database: Database) -> None:
    with pytest.raises(DatabaseError, match=r"no valid measurement .* 2 threads, hot"):
        plot.roofline(database, LAYERS, threads=2)


def test_importance_says_when_trials_are_too_few(database: Database) -> None:
    with pytest.raises(DatabaseError, match="no algorithm has 91 correct trials of one layer"):
        plot.importance(database, LAYERS, least=91)


def test_precisions_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRUN_CACHE", str(tmp_path))
    network = str(tmp_path / "small.onnx")
    onnx.save(residual(), network)
    with pytest.raises(DatabaseError, match=r"2 threads: `fastrun tune .* --calibrate DATA` first"):
        plot.precision(network, threads=2)
    file = front_file(read_target(network).graph, Conditions.here().machine, 2)
    file.parent.mkdir()
    file.write_text(json.dumps(precisions()))
    (axes,) = plot.precision(network, threads=2).axes
    assert axes.has_data()


def test_steps_of_a_network() -> None:
    (axes,) = plot.steps(load(residual(), policy="heuristic"), repeats=1).axes
    assert axes.has_data()
