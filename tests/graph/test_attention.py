"""Attention as exporters write it becomes one operator, and nothing else does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fastrun.graph.core.model import Graph
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.to_onnx.model import export_onnx
from fastrun.tuner.networks.load import load
from tests.support.execution import relative_error
from tests.support.graph_models import Weights, model, node, normal

HEADS, SIZE = 2, 6
WIDTH = HEADS * SIZE
TURNED = ["Conv", "Rotary", "Rotary", "Slice", "Concat", "Attention", "Conv + add"]


def packed(images: int = 2, masks: bool = False, folded: bool = False) -> onnx.ModelProto:
    """timm's attention: queries, keys and values from one product; masks of groups of images.

    Images and heads of the keys are `folded` into one axis while these are transposed.
    """
    shapes: Weights = {
        "w": normal(WIDTH, 3 * WIDTH), "b": normal(3 * WIDTH), "p": normal(WIDTH, WIDTH),
        "apart": np.array([images, 10, 3, HEADS, SIZE]), "one": np.array([1]),
        "each": np.array([images, HEADS, 10, SIZE]), "whole": np.array([images, 10, WIDTH]),
        "scale": np.float32(SIZE**-0.5), "bias": normal(1, HEADS, 10, 10),
        "grouped": np.array([images // 2, 2, HEADS, 10, 10]), "mask": normal(1, 2, 1, 10, 10),
        "back": np.array([images, HEADS, 10, 10]),
        "folded": np.array([images * HEADS, 10, SIZE]),
        "unfolded": np.array([images, HEADS, SIZE, 10]),
    }  # fmt: skip
    parts = [
        line
        for i, name in enumerate("qkv")
        for line in (
            node("Slice", f"t at{i} at{i + 1} first", f"{name}x"),
            node("Reshape", f"{name}x each", name),
        )
    ]
    shapes |= {f"at{i}": np.array([i]) for i in range(4)} | {"first": np.array([0])}
    turned = [node("Transpose", "k", "kt", perm=[0, 1, 3, 2])]
    if folded:
        turned = [node("Reshape", "k folded", "kf"), node("Transpose", "kf", "ft", perm=[0, 2, 1]),
                  node("Reshape", "ft unfolded", "kt")]  # fmt: skip
    scores = [node("Mul", "q scale", "qs"), *turned, node("MatMul", "qs kt", "s0")]
    if masks:
        scores += [node("Add", "s0 bias", "s1"), node("Reshape", "s1 grouped", "s2"),
                   node("Add", "s2 mask", "s3"), node("Reshape", "s3 back", "s")]  # fmt: skip
    else:
        scores += [node("Identity", "s0", "s")]
    nodes = [
        node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Reshape", "a apart", "r"),
        node("Transpose", "r", "t", perm=[2, 0, 3, 1, 4]), *parts, *scores,
        node("Softmax", "s", "e", axis=-1), node("MatMul", "e v", "o"),
        node("Transpose", "o", "u", perm=[0, 2, 1, 3]), node("Reshape", "u whole", "h"),
        node("MatMul", "h p", "z"), node("Add", "x z", "y"),
    ]  # fmt: skip
    return model(nodes, shapes, opset=17, shape=(images, 10, WIDTH))


def computed_mask(shape: tuple[int, ...]) -> onnx.ModelProto:
    """The same, with a mask of this shape that is computed from the input."""
    m = packed()
    size = int(np.prod(shape[-3:]))
    weights = {"mw": normal(WIDTH, size), "added_shape": np.array(shape)}
    m.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    computing = [
        node("ReduceMean", "x", "xm", axes=[1], keepdims=0),
        node("MatMul", "xm mw", "mm"),
        node("Reshape", "mm added_shape", "added"),
    ]
    nodes = [*computing, *m.graph.node]
    del m.graph.node[:]
    m.graph.node.extend(nodes)
    next(n for n in m.graph.node if n.output[0] == "s").CopyFrom(node("Add", "added s0", "s"))
    return m


def multihead() -> onnx.ModelProto:
    """`nn.MultiheadAttention`: rows first, heads in the place of images, one index a part."""
    shapes: Weights = {
        "w": normal(WIDTH, 3 * WIDTH), "p": normal(WIDTH, WIDTH), "zero": np.array([0]),
        "apart": np.array([20, 1, 3, WIDTH]), "each": np.array([20, HEADS, SIZE]),
        "flat": np.array([20, WIDTH]), "whole": np.array([20, 1, WIDTH]),
        "scale": np.float32(SIZE**-0.5), "last": np.array([-2]),
    }  # fmt: skip
    shapes |= {f"at{i}": np.array(i) for i in range(3)}
    parts = [
        line
        for i, name in enumerate("qkv")
        for line in (
            node("Gather", f"t at{i}", f"{name}g", axis=0),
            node("Reshape", f"{name}g each", f"{name}r"),
        )
    ]
    nodes = [
        node("Transpose", "x", "l", perm=[1, 0, 2]), node("MatMul", "l w", "m"),
        node("Reshape", "m apart", "r"), node("Transpose", "r", "t", perm=[2, 0, 1, 3]), *parts,
        node("Transpose", "qr", "q", perm=[1, 0, 2]), node("Mul", "q scale", "qs"),
        node("Transpose", "kr", "kt", perm=[1, 2, 0]), node("Transpose", "vr", "v", perm=[1, 0, 2]),
        node("MatMul", "qs kt", "s"), node("Softmax", "s", "e", axis=-1),
        node("MatMul", "e v", "o"), node("Transpose", "o", "u", perm=[1, 0, 2]),
        node("Reshape", "u flat", "f"), node("Gemm", "f p", "g"), node("Reshape", "g whole", "h"),
        node("Transpose", "h", "z", perm=[1, 0, 2]), node("Add", "x z", "y"),
    ]  # fmt: skip
    return model(nodes, shapes, opset=17, shape=(1, 20, WIDTH))


def crossed() -> onnx.ModelProto:
    """Three products of two tensors, as a decoder has them: keys and values are put together."""
    shapes: Weights = {x: normal(WIDTH, WIDTH) for x in ("wq", "wk", "wv")}
    shapes |= {"each": np.array([1, 20, HEADS, SIZE]), "scale": np.float32(3)}
    parts = [
        line
        for name, x in (("q", "x"), ("k", "c"), ("v", "x"))
        for line in (
            node("MatMul", f"{x} w{name}", f"{name}m"),
            node("Reshape", f"{name}m each", f"{name}r"),
            node("Transpose", f"{name}r", name, perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        )
    ]
    nodes = [
        node("Relu", "x", "c"), *parts, node("MatMul", "q k", "s"), node("Div", "s scale", "d"),
        node("Softmax", "d", "e", axis=-1), node("MatMul", "e v", "y"),
    ]  # fmt: skip
    return model(nodes, shapes, opset=17, shape=(1, 20, WIDTH))


def rotated(form: str) -> onnx.ModelProto:
    """The same, with queries and keys turned by angles, as exporters write it in several ways.

    Halves of a head are pairs, or neighbours; written as sums of products of halves; behind a first
    row that stays.
    """
    m, half = packed(), SIZE // 2
    rows = 9 if form == "but one" else 10
    angles = np.random.default_rng(0).uniform(0, 6, (rows, half))
    wide = np.repeat(angles, 2, -1) if form == "adjacent" else np.tile(angles, 2)
    if form == "parts":
        wide = angles
    weights = {
        "cos": np.cos(wide).astype(np.float32), "sin": np.sin(wide).astype(np.float32),
        "pairs": np.array([2, HEADS, 10, half, 1]), "rows": np.array([2]), "last": np.array([3]),
        "two": np.array([2]), "half": np.array([half]), "end": np.array([99]),
    }  # fmt: skip
    nodes = []
    for x in "qk":
        source, done = f"{x}0", x
        if form == "but one":
            nodes += [node("Slice", f"{source} first at1 rows", f"{x}first"),
                      node("Slice", f"{source} at1 end rows", f"{x}rest")]  # fmt: skip
            source, done = f"{x}rest", f"{x}turned"
        step = "two" if form == "adjacent" else "at1"
        second = "at1" if form == "adjacent" else "half"
        stop = "end" if form == "adjacent" else "half"
        nodes += [node("Slice", f"{source} first {stop} last {step}", f"{x}a"),
                  node("Slice", f"{source} {second} end last {step}", f"{x}b")]  # fmt: skip
        if form == "parts":
            nodes += [node("Mul", f"{x}a cos", f"{x}ac"), node("Mul", f"{x}b sin", f"{x}bs"),
                      node("Mul", f"{x}b cos", f"{x}bc"), node("Mul", f"sin {x}a", f"{x}as"),
                      node("Sub", f"{x}ac {x}bs", f"{x}1"), node("Add", f"{x}as {x}bc", f"{x}2"),
                      node("Concat", f"{x}1 {x}2", done, axis=-1)]  # fmt: skip
            continue
        nodes += [node("Neg", f"{x}b", f"{x}n")]
        if form == "adjacent":
            nodes += [node("Reshape", f"{x}n pairs", f"{x}nr"),
                      node("Reshape", f"{x}a pairs", f"{x}ar"),
                      node("Concat", f"{x}nr {x}ar", f"{x}pairs", axis=-1),
                      node("Reshape", f"{x}pairs each", f"{x}other")]  # fmt: skip
        else:
            nodes += [node("Concat", f"{x}n {x}a", f"{x}other", axis=-1)]
        nodes += [node("Mul", f"{source} cos", f"{x}own"), node("Mul", f"{x}other sin", f"{x}pair"),
                  node("Add", f"{x}own {x}pair", done)]  # fmt: skip
        if form == "but one":
            nodes += [node("Concat", f"{x}first {done}", x, axis=2)]
    for n in m.graph.node:
        if n.output[0] in ("q", "k"):
            n.output[0] += "0"
    place = next(i for i, n in enumerate(m.graph.node) if n.output[0] == "qs")
    written = [*m.graph.node[:place], *nodes, *m.graph.node[place:]]
    del m.graph.node[:]
    m.graph.node.extend(written)
    m.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    return m


def works(graph: Graph) -> list[str]:
    return [n.work for n in graph.nodes if n.work not in ("Transpose", "Reshape")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (packed(), ["Conv", "Attention", "Conv + add"]),
        (packed(4, masks=True), ["Conv", "Attention", "Conv + add"]),
        (packed(folded=True), ["Conv", "Attention", "Conv + add"]),
        (multihead(), ["Conv", "Attention", "Conv + add"]),
        (crossed(), ["relu", "Conv", "Conv", "Conv", "Concat", "Attention"]),
        (computed_mask((2, HEADS, 10, 10)), ["mean", "MatMul", "Conv", "Attention", "Conv + add"]),
        (computed_mask((2, 1, 1, 10)), ["mean", "MatMul", "Conv", "Attention", "Conv + add"]),
        (rotated("halves"), TURNED),
        (rotated("adjacent"), TURNED),
        (rotated("parts"), TURNED),
        (rotated("but one"), TURNED),
    ],
    ids=[
        "packed",
        "masked",
        "folded",
        "multihead",
        "crossed",
        "computed mask",
        "computed row",
        "turned halves",
        "turned neighbours",
        "parts of sums",
        "all but one turned",
    ],
)
def test_what_exporters_write(source: onnx.ModelProto, expected: list[str]) -> None:
    graph = import_onnx(source)
    done, x = optimise(graph), normal(*graph.shape("x"))
    assert sorted(works(done)) == sorted(expected)
    truth = reference.run(graph, {"x": x})["y"]
    for again in (done, import_onnx(export_onnx(done))):
        np.testing.assert_allclose(reference.run(again, {"x": x})["y"], truth, rtol=1e-5, atol=1e-5)
    network = load(source, threads=2, policy="heuristic")
    assert relative_error(network.run({"x": x})["y"], truth) < 1e-4
    moves = {"Transpose", "Slice"} if "Rotary" in expected else {"Transpose", "Slice", "reorder"}
    assert not moves & {s.work for s in network.steps[:-1]}


def test_what_resembles_it() -> None:
    """A softmax over queries, scores that others read, and a mask that is computed."""
    base = packed()
    for change in ("axis", "read", "mask"):
        m = onnx.ModelProto()
        m.CopyFrom(base)
        nodes = {n.output[0]: n for n in m.graph.node}
        if change == "axis":
            nodes["e"].attribute[0].i = 2
        elif change == "read":
            m.graph.output.append(onnx.helper.make_tensor_value_info("e", 1, [2, HEADS, 10, 10]))
        else:
            nodes["s"].CopyFrom(node("Add", "s0 s0", "s"))
        done = optimise(import_onnx(m))
        assert "Attention" not in works(done)


def test_of_images_that_convolutions_read_too() -> None:
    """As in EfficientFormerV2: values, and the result, get a halo for padded convolutions."""
    image, rows = (1, WIDTH, 4, 5), (1, HEADS, SIZE, 20)
    shapes: Weights = {f"w{x}": normal(WIDTH, WIDTH, 1, 1, seed=i) for i, x in enumerate("qkv")}
    shapes |= {"local": normal(WIDTH, 1, 3, 3), "out": normal(8, WIDTH, 3, 3)}
    shapes |= {"rows": np.array(rows), "image": np.array(image)}
    nodes = [node("Conv", f"x w{x}", x) for x in "qkv"]
    nodes += [node("Conv", "v local", "near", group=WIDTH, pads=[1] * 4)]
    nodes += [node("Reshape", f"{x} rows", f"{x}1") for x in "qkv"]
    nodes += [node("Transpose", f"{x}1", f"{x}2", perm=[0, 1, 3, 2]) for x in "qv"]
    nodes += [
        node("MatMul", "q2 k1", "scores"),
        node("Softmax", "scores", "e"),
        node("MatMul", "e v2", "seen"),
        node("Transpose", "seen", "turned", perm=[0, 1, 3, 2]),
        node("Reshape", "turned image", "far"),
        node("Conv", "far out", "a", pads=[1] * 4),
        node("Conv", "near out", "b", pads=[1] * 4),
        node("Add", "a b", "y"),
    ]
    source = model(nodes, shapes, shape=image)
    graph, x = import_onnx(source), normal(*image)
    assert "Attention" in works(optimise(graph))
    found = load(source, policy="heuristic").run({"x": x})["y"]
    assert relative_error(found, reference.run(graph, {"x": x})["y"]) < 1e-4
