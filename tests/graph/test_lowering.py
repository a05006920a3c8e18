"""Uses of operators that were once wrong or refused, against onnxruntime or the standard's text."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import fastrun
from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Array
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run
from tests.support.graph_models import Weights, model, node, normal
from tests.support.peer import assert_same, by_onnxruntime


def checked(m: onnx.ModelProto) -> Array:
    """Our result for the input "x"; it must be equal to the result of onnxruntime."""
    graph = import_onnx(m)
    feeds = {"x": normal(*graph.shape("x"))}
    truth = by_onnxruntime(m, feeds)
    assert truth
    for g in (graph, optimise(graph)):
        assert_same(run(g, feeds), truth)
    return run(graph, feeds)["y"]


def refused(m: onnx.ModelProto, text: str) -> None:
    with pytest.raises(GraphError, match=text) as caught:
        import_onnx(m).check_supported()
    assert "\n" not in str(caught.value)


def resize(inputs: str, weights: Weights, opset: int = 18, **attributes: Any) -> onnx.ModelProto:
    return model(
        [node("Resize", inputs, "y", **attributes)], weights, shape=(1, 2, 7, 5), opset=opset
    )


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("axes", [[-2, -1], [2, 3], [-1, -2], [3], [-1]])
def test_scales_and_sizes_of_any_axes(mode: str, axes: list[int]) -> None:
    scales = {"s": floats(2, 0.7)[: len(axes)]}
    checked(resize("x _ s", scales, axes=axes, mode=mode))
    checked(resize("x _ _ z", {"z": np.array([9, 3])[: len(axes)]}, axes=axes, mode=mode))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("sizes", [[10, 4], [3, 9], [12, 5]])
def test_a_policy_scales_all_axes_alike(mode: str, policy: str, sizes: list[int]) -> None:
    given = {"mode": mode, "keep_aspect_ratio_policy": policy}
    m = resize("x _ _ z", {"z": np.array(sizes)}, axes=[2, 3], **given)
    y = checked(m)
    # onnxruntime leaves axes alone that are counted from the end.
    m = resize("x _ _ z", {"z": np.array(sizes)}, axes=[-2, -1], **given)
    assert np.array_equal(run(import_onnx(m), {"x": normal(1, 2, 7, 5)})["y"], y)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_region_that_nothing_reads(opset: int) -> None:
    checked(resize("x r s", {"r": floats(*range(8)), "s": floats(1, 1, 2, 2)}, opset))
    crop = {"coordinate_transformation_mode": "tf_crop_and_resize"}
    m = resize("x r s", {"r": floats(*range(8)), "s": floats(1, 1, 2, 2)}, opset, **crop)
    refused(m, "coordinates other than 'tf_crop_and_resize'")


@pytest.mark.parametrize("scales", [(1, 1, 0.7, 0.6), (1, 1, 0.7, 2), (1, 1, 3, 1.5)])
def test_the_first_resize_takes_the_pixel_behind_to_reduce(scales: tuple[float, ...]) -> None:
    checked(resize("x s", {"s": floats(*scales)}, 10, mode="nearest"))


def test_scales_are_float32_and_so_are_sizes_and_ties() -> None:
    m = model(
        [node("Upsample", "x s", "y")], {"s": floats(1, 1, 1, 2.6)}, shape=(1, 1, 1, 5), opset=9
    )
    assert checked(m).shape == (1, 1, 1, 13)
    checked(resize("x _ s", {"s": floats(1, 1, 2.3, 1)}))


@pytest.mark.parametrize("opset", [10, 19, 22])
def test_no_window_begins_in_the_padding_behind(opset: int) -> None:
    given = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1}
    m = model([node("MaxPool", "x", "y", **given)], shape=(1, 3, 5, 5), opset=opset)
    assert checked(m).shape == (1, 3, 3, 3)


def test_windows_beyond_any_picture_are_refused() -> None:
    for k in (2**62, 2**30):
        m = model([node("MaxPool", "x", "y", kernel_shape=[k, 1], auto_pad="SAME_LOWER")])
        refused(m, f"kernel \\({k}, 1\\)")


def test_windows_of_padding_alone_are_refused() -> None:
    given = {"kernel_shape": [2, 2], "dilations": [3, 3], "pads": [1] * 4}
    m = model([node("MaxPool", "x", "y", **given)], shape=(1, 1, 2, 2))
    refused(m, "windows each of which has a pixel")


@pytest.mark.parametrize(
    "m",
    [
        model([node("MaxPool", "x", "y", kernel_shape=[9, 9])]),
        model([node("Conv", "x w", "y")], {"w": normal(2, 4, 9, 9)}),
        model([node("Conv", "x w", "y", dilations=[5, 5])], {"w": normal(2, 4, 3, 3)}),
    ],
)
def test_windows_larger_than_the_input_are_refused(m: onnx.ModelProto) -> None:
    refused(m, "does not fit into 8 \\+ 0 \\+ 0|cannot have the shape")


@pytest.mark.parametrize(
    "given",
    [
        {"output_shape": [4, 3]},
        {"output_shape": [4, 3], "auto_pad": "SAME_UPPER"},
        {"output_shape": [8, 17], "strides": [1, 2], "pads": [3, 1, 0, 0]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2], "output_padding": [1, 1]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2], "output_padding": [1, 0]},
        {"auto_pad": "SAME_UPPER", "strides": [3, 3]},
        {"auto_pad": "VALID", "dilations": [2, 3]},
        {"pads": [4, 4, 0, 1]},
        {"pads": [0, 1, 3, 3], "strides": [2, 2], "output_padding": [1, 1]},
    ],
)
def test_shapes_of_transposed_convolutions(given: dict[str, Any]) -> None:
    for kernel in ((3, 3), (2, 2)):
        m = model([node("ConvTranspose", "x w b", "y", group=2, **given)],
                  {"w": normal(4, 3, *kernel), "b": normal(6)}, shape=(1, 4, 7, 8))  # fmt: skip
        checked(m)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"pads": [5, 5, 5, 5]}, "its result would have the shape"),
        ({"output_shape": [11, 12]}, "output_shape \\(11, 12\\), as the whole result is"),
        ({"output_shape": [4]}, "output_shape"),
        ({"output_padding": [1]}, "output_padding"),
        ({"group": 3}, "group"),
    ],
)
def test_impossible_transposed_convolutions(given: dict[str, Any], why: str) -> None:
    m = model([node("ConvTranspose", "x w", "y", **given)], {"w": normal(4, 3, 3, 3)})
    refused(m, why)


@pytest.mark.parametrize(
    ("n", "weights", "why"),
    [
        (node("Softmax", "x", "y", axis=4), {}, "must be in \\[-4 , 3\\]"),
        (node("Gather", "x i", "y", axis=1), {"i": np.array([4])}, "outside an axis of 4"),
        (node("Slice", "x a b _ t", "y"),
         {"a": np.array([0]), "b": np.array([1]), "t": np.array([0])}, "impossible"),
        (node("Pad", "x p", "y"), {"p": np.array([0, 0, -9, 0, 0, 0, 3, 0])}, "-9 and 3 of 8"),
        (node("Pad", "x p", "y", mode="reflect"),
         {"p": np.array([0, 0, 8, 0, 0, 0, 0, 0])}, "reflect padding by 8"),
        (node("Split", "x s", "y z"), {"s": np.array([1, 1])}, "cannot be split|impossible"),
        (node("DepthToSpace", "x", "y", blocksize=3), {}, "4 channels in blocks of 3 x 3"),
        (node("SpaceToDepth", "x", "y", blocksize=3), {}, "8 x 8 pixels in blocks of 3 x 3"),
        (node("PRelu", "x s", "y"), {"s": normal(3)}, "impossible"),
        (node("LRN", "x", "y", size=0), {}, "0 channels"),
        (node("MaxPool", "x", "y", kernel_shape=[1, 1], strides=[4, 4], auto_pad="SAME_UPPER"),
         {}, "strides exceed the kernel"),
    ],
)  # fmt: skip
def test_refusals(n: onnx.NodeProto, weights: Weights, why: str) -> None:
    refused(model([n], weights, opset=13), why)


@pytest.mark.parametrize("pad", [1, 2, 3])
@pytest.mark.parametrize(
    ("operator", "value"), [("MaxPool", 0.0), ("MaxPool", -np.inf), ("AveragePool", 0.0)]
)
def test_padding_as_wide_as_the_window(pad: int, operator: str, value: float) -> None:
    nodes = [
        node("Relu", "x", "r"),
        node("Pad", "r p v", "b"),
        node(operator, "b", "y", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    checked(model(nodes, {"p": np.array([0, 0, pad, pad] * 2), "v": np.float32(value)}))


def test_products_of_vectors_and_computed_summands() -> None:
    for shape, other in (((3,), (3, 2)), ((2, 4, 3), (3,)), ((3,), (3,)), ((3,), (2, 3, 4))):
        checked(model([node("MatMul", "x w", "y")], {"w": normal(*other)}, shape=shape))
    checked(model([node("Gemm", "x w x", "y", alpha=0.5)], {"w": normal(4, 4)}, shape=(3, 4)))


@pytest.mark.parametrize("opset", [7, 12, 13])
def test_axes_of_one_element(opset: int) -> None:
    for operator, axes in (("Squeeze", [-1]), ("Squeeze", []), ("Unsqueeze", [-2, 0])):
        weights = {"a": np.array(axes, np.int64)} if opset >= 13 else {}
        given = {"axes": axes} if axes and not weights else {}
        n = node(operator, "x a" if weights else "x", "y", **given)
        checked(model([n], weights, shape=(3, 1, 2, 1), opset=opset))


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_a_single_index_takes_the_axis_away(axis: int) -> None:
    for index in (1, -2):
        nodes = [node("Gather", "x i", "g", axis=axis), node("Relu", "g", "y")]
        m = model(nodes, {"i": np.array(index)}, shape=(3, 4, 5, 6))
        assert checked(m).ndim == 3


@pytest.mark.parametrize("count", [3, 2**31 - 1])
def test_a_split_into_another_number_of_parts(count: int) -> None:
    m = model([node("Split", "x", "y z", axis=1, num_outputs=count)], opset=18)
    refused(m, f"it has 2 outputs, not {count}")


def test_absent_inputs_are_refused() -> None:
    refused(model([node("Sum", "x _", "y")]), "its input 1 is missing")
    refused(model([node("PRelu", "x", "y")]), "its input 1 is missing|impossible")


def test_whole_numbers_are_divided_and_raised_as_c_does() -> None:
    least = np.iinfo(np.int64).min
    x = np.array([7, -7, 6, -6, least, -1], np.int64)
    for operator, other in (("Div", [2, 2, -4, -4, 2, 2]), ("Pow", [2, 3, -1, 0, 1, -3])):
        n = node(operator, "x b", "y")
        m = model([n], {"b": np.array(other)}, shape=x.shape, dtype=onnx.TensorProto.INT64)
        m.graph.output[0].ClearField("type")
        truth = by_onnxruntime(m, {"x": x})
        assert truth
        assert np.array_equal(run(import_onnx(m), {"x": x})["y"], truth["y"])


@pytest.mark.parametrize(
    "operator", ["GlobalAveragePool", "AveragePool", "ReduceMean", "ReduceMax"]
)
def test_all_pixels_in_their_order_are_summed_in_vectors(operator: str) -> None:
    """A pool adds one pixel after another; it took twelve times as long."""
    given: dict[str, Any] = {"kernel_shape": [70, 90]} if operator == "AveragePool" else {}
    given |= {"axes": [2, 3]} if "Reduce" in operator else {}
    m = model([node(operator, "x", "y", **given)], shape=(2, 3, 70, 90), opset=13)
    network = fastrun.load(m, policy="heuristic")
    assert [step.algorithm for step in network.steps] == ["strided"]
    x = normal(2, 3, 70, 90) + 3
    truth = run(import_onnx(m), {"x": x})["y"]
    np.testing.assert_allclose(network.run({"x": x})["y"], truth, rtol=1e-6)


@pytest.mark.parametrize("slope", [floats(0.25), floats(0.25).reshape(1, 1, 1), floats(-1.5)])
def test_one_slope_of_all_channels_belongs_to_the_convolution(slope: Array) -> None:
    nodes = [node("Conv", "x w", "a"), node("PRelu", "a s", "y")]
    m = model(nodes, {"w": normal(5, 4, 1, 1), "s": slope})
    checked(m)
    names = [type(n.op).__name__ for n in optimise(import_onnx(m)).nodes]
    assert names == (["Conv"] if slope.item() > 0 else ["Conv", "Unary"])
