"""Layers stay in float32 until outputs are close enough: those that lose most, and no more."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.quantise.network import quantise
from fastrun.graph.quantise.simulate import differences, scores
from fastrun.graph.reference.interpreter import run
from fastrun.graph.to_onnx.model import export_onnx
from tests.support.graph_models import model, node, normal
from tests.support.peer import by_onnxruntime


def spread(count: int, channels: int, seed: int = 0) -> Array:
    """Filters that keep the size of values."""
    return normal(count, channels, 1, 1, seed=seed) / np.float32(channels**0.5)


def network(kind: str = "Gemm") -> Graph:
    """Convolutions, one of which multiplies channels of very different sizes, and scores."""
    nodes = [
        node("Conv", "x w0", "a"),
        node("Tanh", "a", "ta"),
        node("Mul", "ta sizes", "large"),  # a few channels are much larger than the others
        node("Conv", "large w1", "b"),
        node("Tanh", "b", "tb"),
        node("Conv", "tb w2", "c"),
        node("Tanh", "c", "tc"),
        node("Conv", "tc w3", "d"),
        node("GlobalMaxPool", "d", "p"),
        node("Flatten", "p", "f"),
        node(kind, "f fc", "s"),
        node("Softmax", "s", "y", axis=1),
    ]
    sizes = np.ones((1, 8, 1, 1), np.float32)
    sizes[:, :2] = 200
    weights = {
        **{"w0": spread(8, 4), "sizes": sizes, "w1": spread(8, 8, 1) / sizes},
        **{"w2": spread(8, 8, 2), "w3": spread(16, 8, 3), "fc": normal(16, 6, seed=4)},
    }
    return optimise(import_onnx(model(nodes, weights)))


def data(seed: int = 0) -> list[dict[str, Array]]:
    return [{"x": normal(1, 4, 8, 8, seed=100 * seed + i)} for i in range(6)]


def in_integers(g: Graph) -> list[str]:
    return [n.output for n in g.nodes if n.input(1) in g.constants and n.input(1) in g.grids]


def sqnr(g: Graph, q: Graph) -> float:
    return differences(g, q, data())["y"].sqnr


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_the_layer_that_loses_most_stays_first(kind: str) -> None:
    g = network(kind)
    whole = quantise(g, data(), ranges="minmax")
    layers = in_integers(whole)
    assert len(layers) == 5
    [second] = [n.output for n in g.nodes if n.input(1) == "w1"]
    without = quantise(g, data(), ranges="minmax", keep=[g.producers[second].name])
    least = sqnr(g, whole)
    assert sqnr(g, without) > least + 3
    better = quantise(g, data(), ranges="minmax", min_sqnr=least + 1)
    assert sqnr(g, better) >= least + 1
    assert set(layers) - set(in_integers(better)) == {second}
    # What only that layer read is not rounded any more, and its weights are the old ones.
    assert g.producers[second].inputs[0] not in better.grids
    assert np.array_equal(better.constants["w1"], g.constants["w1"])


def test_more_decibels_keep_more_layers_and_onnxruntime_runs_the_file() -> None:
    g = network()
    whole = quantise(g, data())
    least, counts = sqnr(g, whole), [len(in_integers(whole))]
    for more in (-3, 4, 12):
        q = quantise(g, data(), min_sqnr=least + more)
        assert sqnr(g, q) >= least + more
        counts.append(len(in_integers(q)))
    assert counts[0] == counts[1] >= counts[2] >= counts[3] > 0
    assert counts[3] < counts[0]
    written = export_onnx(q)
    onnx.checker.check_model(written, full_check=True)
    for x in data(1):
        found = by_onnxruntime(written, x)
        assert found
        assert np.abs(found["y"] - run(q, x)["y"]).max() < 0.02


def test_what_no_layer_allows_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"an output has an SQNR of less than 90 dB .* ask"):
        quantise(network(), data(), min_sqnr=90)


def test_one_layer_stays_or_not() -> None:
    g = optimise(import_onnx(model([node("Conv", "x w", "y")], {"w": spread(8, 4)})))
    assert in_integers(quantise(g, data(), min_sqnr=20)) == ["y"]
    with pytest.raises(UnsupportedError, match="less than 80 dB"):
        quantise(g, data(), min_sqnr=80)


def test_scores_are_compared_before_a_softmax() -> None:
    g = network()
    assert scores(g) == {"y": "s"}
    found = differences(g, quantise(g, data()), data())["y"]
    assert found.of == "s"
    assert found.agreement is not None
    read = [node("Softmax", "x", "y", axis=1), node("Conv", "y w", "z")]
    m = model(read, {"w": spread(8, 4)})
    m.graph.output.append(onnx.helper.make_empty_tensor_value_info("z"))
    both = optimise(import_onnx(m))
    assert scores(both) == {"y": "y", "z": "z"}  # others read these probabilities


def test_the_classes_of_pixels_are_their_channels() -> None:
    g = optimise(import_onnx(model([node("Conv", "x w", "y")], {"w": spread(1, 4)})))
    assert differences(g, quantise(g, data()), data())["y"].agreement is None
