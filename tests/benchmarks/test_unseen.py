"""Networks that played no part in the development: exported by PyTorch, computed by fastrun."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

from fastrun.benchmarks.unseen import NETWORKS, main
from fastrun.graph.networks import load_network
from fastrun.graph.reference import interpreter as reference
from fastrun.tuner.networks.load import load
from tests.support.execution import relative_error
from tests.support.graph_models import normal

pytestmark = pytest.mark.slow


def test_the_files_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "espcn"]) == 0
    file = tmp_path / "espcn.onnx"
    assert capsys.readouterr().out.splitlines()[-1] == str(file)
    network = load(file, policy="heuristic")
    ((name, shape),) = network.inputs.items()
    assert shape == NETWORKS["espcn"][1]
    x = {name: normal(*shape)}
    (found,) = network.run(x).values()
    (expected,) = reference.run(load_network(file), x).values()
    assert relative_error(found, expected) < 1e-3  # the largest error, through Winograd
