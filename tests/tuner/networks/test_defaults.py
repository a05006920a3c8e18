"""Inputs that are initializers too: their values may be left out, or be others."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import pytest
from onnx import helper

import fastrun
from fastrun.graph.core.errors import InputError
from tests.support.graph_models import model, node, normal


def weighted(*sizes: int | str) -> onnx.ModelProto:
    """A convolution whose weights, an input too, the model has; and another layer."""
    weights = {"w": normal(6, 4, 3, 3), "v": normal(5, 6, 1, 1)}
    nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("Conv", "c v", "y")]
    made = model(nodes, weights, shape=(1, 4, *sizes))
    made.graph.input.append(helper.make_tensor_value_info("w", 1, (6, 4, 3, 3)))
    return made


@pytest.mark.parametrize("sizes", [(8, 8), ("h", "w")], ids=["fixed", "open"])
def test_a_run_may_give_other_values(sizes: tuple[int | str, ...]) -> None:
    source, x = weighted(*sizes), normal(1, 4, 8, 8)
    network = fastrun.load(source, policy="heuristic")
    assert [*network.inputs] == ["x"]
    own, other = normal(6, 4, 3, 3), normal(6, 4, 3, 3, seed=1)
    first = network.run({"x": x})["y"]
    assert np.array_equal(network.run({"x": x, "w": own})["y"], first)
    changed = weighted(8, 8)
    changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(other, "w"))
    expected = fastrun.load(changed, policy="heuristic").run({"x": x})["y"]
    for one in (network, network.clone(), pickle.loads(pickle.dumps(network))):
        assert np.array_equal(one.run({"x": x, "w": other})["y"], expected)
    assert np.array_equal(network.run({"x": x})["y"], first)


def test_values_of_another_kind_are_refused() -> None:
    network = fastrun.load(weighted(8, 8), policy="heuristic")
    for value in (normal(6, 4, 1, 1), normal(6, 4, 3, 3).astype(np.float64), [1.0]):
        message = "^input 'w' must be left out, or be an array of 6x4x3x3 float32$"
        with pytest.raises(InputError, match=message):
            network.run({"x": normal(1, 4, 8, 8), "w": value})
