"""Networks whose models leave sizes open: planned for the sizes that come."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fastrun.graph.core.errors import GraphError, InputError
from fastrun.graph.core.model import Shape
from fastrun.graph.runtime.dynamic import DynamicExecutable
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.runtime.weights import Common
from fastrun.tuner.networks.load import load
from tests.support.forking import child, code
from tests.support.graph_models import model, node, normal
from tests.support.peer import assert_same, by_onnxruntime

INT = {"i0": 0, "i1": 1, "i2": 2, "i4": 4}


def computed_sizes() -> onnx.ModelProto:
    """A small U-Net. Exporters compute sizes like these from the sizes of the input."""
    nodes = [
        node("Conv", "x down", "a", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        node("Relu", "a", "b"),
        node("Shape", "x", "s"),
        node("Slice", "s i2 i4 i0", "hw"),
        node("Shape", "b", "bs"),
        node("Slice", "bs i0 i2 i0", "nc"),
        node("Concat", "nc hw", "whole", axis=0),
        node("Resize", "b _ _ whole", "up", mode="nearest"),
        node("Gather", "s two", "h"),
        node("Gather", "s three", "w"),
        node("Range", "zero w one", "columns"),
        node("Cast", "columns", "ramp", to=onnx.TensorProto.FLOAT),
        node("Unsqueeze", "h i0", "h1"),
        node("Unsqueeze", "w i0", "w1"),
        node("Concat", "one1 one1 h1 w1", "plane", axis=0),
        node("Expand", "ramp plane", "positions"),
        node("ConstantOfShape", "plane", "zeros"),
        node("Add", "positions zeros", "grid"),
        node("Add", "up grid", "mixed"),
        node("Concat", "mixed x", "both", axis=1),
        node("Conv", "both out", "c", kernel_shape=[3, 3], pads=[1] * 4),
        node("Mul", "h w", "pixels"),
        node("Unsqueeze", "pixels i0", "p1"),
        node("Gather", "s nought", "n"),
        node("Unsqueeze", "n i0", "n1"),
        node("Concat", "n1 four p1", "rows", axis=0),
        node("Reshape", "c rows", "y"),
    ]
    weights = {
        "down": normal(16, 4, 3, 3) / 6,
        "out": normal(4, 20, 3, 3) / 13,
        **{name: np.array([value]) for name, value in INT.items()},
        "one1": np.array([1]),
        "four": np.array([4]),
        "nought": np.array(0),
        "two": np.array(2),
        "three": np.array(3),
        "zero": np.array(0),
        "one": np.array(1),
    }
    return model(nodes, weights, shape=("batch", 4, "height", "width"))


def open_batch() -> onnx.ModelProto:
    nodes = [node("Conv", "x w", "c", kernel_shape=[1, 1]), node("Relu", "c", "y")]
    return model(nodes, {"w": normal(8, 4, 1, 1)}, shape=("batch", 4, 8, 8))


def network(m: onnx.ModelProto, **options: Any) -> DynamicExecutable:
    found = load(m, policy="heuristic", **options)
    assert isinstance(found, DynamicExecutable)
    return found


class Counting:
    """Notes the shapes for which a network is planned."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.shapes = inner, list[Shape]()

    def __call__(self, shapes: Mapping[str, Shape], common: Common) -> Executable:
        self.shapes.append(shapes["x"])
        made: Executable = self.inner(shapes, common)
        return made


def counting(m: onnx.ModelProto, **options: Any) -> tuple[DynamicExecutable, Counting]:
    found = network(m, **options)
    found._make = counter = Counting(found._make)
    return found, counter


SHAPES = [(1, 4, 8, 8), (1, 4, 12, 20), (3, 4, 7, 5), (1, 4, 8, 8), (3, 4, 7, 5)]


def test_each_size_is_planned_once_and_computes_what_onnxruntime_does() -> None:
    unet, counter = counting(computed_sizes())
    for shape in SHAPES:
        feeds = {"x": normal(*shape)}
        truth = by_onnxruntime(computed_sizes(), feeds)
        assert truth is not None
        assert_same(unet.run(feeds), truth, str(shape))
    assert counter.shapes == SHAPES[:3]
    assert unet.inputs == {"x": ("batch", 4, "height", "width")}


def test_weights_that_are_packed_alike_lie_in_memory_once() -> None:
    unet = network(computed_sizes())
    first, second = unet.at({"x": (1, 4, 8, 8)}), unet.at({"x": (2, 4, 8, 8)})
    assert first.memory.weights == second.memory.weights == unet.memory.weights > 0
    assert unet.memory.arena == first.memory.arena + second.memory.arena


def test_weights_live_as_long_as_a_size_that_uses_them() -> None:
    unet = network(computed_sizes(), kept_shapes=1)
    feeds = {"x": normal(2, 4, 8, 8)}
    first = unet.at({"x": (1, 4, 8, 8)})
    expected = unet.run(feeds)["y"]  # with the weights of the first size
    del first
    assert np.array_equal(unet.run(feeds)["y"], expected)
    assert unet.kept == [{"x": (2, 4, 8, 8)}]


def test_the_sizes_used_last_are_kept() -> None:
    unet, counter = counting(computed_sizes(), kept_shapes=2)
    a, b, c = ({"x": shape} for shape in SHAPES[:3])
    unet.warm([a, b])
    unet.at(a)
    unet.at(c)
    assert unet.kept == [a, c]
    unet.at(b)
    assert counter.shapes == [a["x"], b["x"], c["x"], b["x"]]
    with pytest.raises(ValueError, match="3 shapes to warm, but only 2 are kept"):
        unet.warm([a, b, c])
    with pytest.raises(ValueError, match="at least one shape"):
        network(computed_sizes(), kept_shapes=0)


def test_what_is_warm_is_not_planned_again() -> None:
    unet, counter = counting(computed_sizes())
    several = [{"x": shape} for shape in SHAPES[:2]]
    with pytest.raises(InputError):
        unet.warm([*several, {"x": (1, 5, 8, 8)}])  # the channels are not open
    assert unet.kept == several  # what came before the mistake is there
    unet.warm(several)
    for shape in SHAPES[:2]:
        feeds = {"x": normal(*shape)}
        expected = network(computed_sizes()).run(feeds)["y"]
        assert np.array_equal(unet.run(feeds)["y"], expected)
    assert counter.shapes == SHAPES[:2]


def test_threads_share_a_network() -> None:
    unet, counter = counting(computed_sizes())
    feeds = [{"x": normal(*shape, seed=seed)} for seed in range(3) for shape in SHAPES[:3]]
    alone = network(computed_sizes())
    expected = [alone.run(x)["y"] for x in feeds]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: unet.run(x)["y"], feeds))
    assert all(map(np.array_equal, found, expected))
    assert sorted(counter.shapes) == sorted(SHAPES[:3])


def test_clones_copies_and_children_compute_the_same() -> None:
    unet, counter = counting(computed_sizes())
    feeds = {"x": normal(*SHAPES[1])}
    expected = unet.run(feeds)["y"]
    clone = unet.clone()
    assert np.array_equal(clone.run(feeds)["y"], expected)
    assert len(counter.shapes) == 1
    assert clone.at({"x": SHAPES[1]}) is not unet.at({"x": SHAPES[1]})
    assert clone.memory.weights == unet.memory.weights
    copy = pickle.loads(pickle.dumps(network(computed_sizes()).clone()))
    assert np.array_equal(copy.run(feeds)["y"], expected)
    assert code(child(lambda: np.array_equal(unet.run(feeds)["y"], expected))) == 0


def test_an_open_batch_size_is_1_unless_it_is_given() -> None:
    small = network(open_batch())
    assert small.plan.inputs == {"x": (1, 4, 8, 8)}
    assert small.run({"x": normal(5, 4, 8, 8)})["y"].shape == (5, 8, 8, 8)
    assert [row["output"] for row in small.profile(1)] == ["y"]
    fixed = load(open_batch(), policy="heuristic", shapes={"x": (2, 4, 8, 8)})
    assert isinstance(fixed, Executable)
    assert fixed.at({"x": (2, 4, 8, 8)}) is fixed


def test_a_plan_fixes_the_sizes(tmp_path: Path) -> None:
    unet = network(computed_sizes())
    unet.at({"x": (1, 4, 8, 8)}).plan.save(tmp_path / "unet.plan")
    fixed = load(computed_sizes(), plan=tmp_path / "unet.plan")
    assert fixed.inputs == {"x": (1, 4, 8, 8)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": (1, 5, 8, 8)}, r"\(1, 5, 8, 8\) instead of \(batch, 4, height, width\)"),
        ({"x": (1, 4, 8)}, r"\(1, 4, 8\) instead of"),
        ({"z": (1,)}, "no input 'z': the network's inputs are x"),
        ({}, r"sizes of input 'x' are open, .*--shape x=1x4x224x224.*\{'x': \(1, 4, 224, 224\)\}"),
    ],
)
def test_shapes_that_the_model_forbids_are_refused(shapes: dict[str, Shape], message: str) -> None:
    unet = network(computed_sizes())
    with pytest.raises(InputError, match=message):
        unet.at(shapes)


def test_sizes_that_contradict_the_nodes_are_named_with_the_node() -> None:
    nodes = [
        node("MaxPool", "x", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", "p _ twice", "u", mode="nearest"),
        node("Add", "x u", "y"),
    ]
    twice = np.array([1, 1, 2, 2], np.float32)
    odd = network(model(nodes, {"twice": twice}, shape=(1, 4, "h", "w")))
    assert odd.run({"x": normal(1, 4, 6, 4)})["y"].shape == (1, 4, 6, 4)
    with pytest.raises(GraphError, match=r"node 'y' .*\(with x of 1x4x7x4\)"):
        odd.run({"x": normal(1, 4, 7, 4)})
    with pytest.raises(InputError, match="'x' is missing"):
        odd.run({})
