"""`fastrun.tune`: layers and networks together, stored and ready to load."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import pytest

from fastrun import Budget, ConvProblem, Database, GraphError, load, tune
from tests.support.graph_models import model, node, normal

pytestmark = pytest.mark.slow

LAYER = ConvProblem.parse("conv 1x8x8x8 8x3x3 s1 p1")


def test_a_network_and_a_layer(tmp_path: Path) -> None:
    path, store = tmp_path / "small.onnx", tmp_path / "records.db"
    nodes = [node("Conv", "x v", "a", pads=[1, 1, 1, 1]), node("Relu", "a", "y")]
    onnx.save(model(nodes, {"v": normal(8, 4, 3, 3)}), path)
    tuned = tune([path, str(LAYER)], store, Budget(trials=2))
    assert [s.problem for s in tuned.standings] == [
        ConvProblem.parse("conv 1x4x8x8 8x3x3 s1 p1 relu"),
        LAYER,
    ]
    assert all(s.best and s.naive and s.heuristic for s in tuned.standings)
    record = tuned.finals[str(path)]
    assert record.samples[record.kept]
    with Database(store) as database, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {r.run for r in database.records()} == {tuned.search.run}
        assert str(load(path, database=database).plan) == record.plan


def test_what_is_no_target_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(GraphError, match="did you mean resnet18"):
        tune("resnet19", "sqlite://")
