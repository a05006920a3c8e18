"""Small models, and damage done to them: to their bytes, or to one or two of their fields."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from tests.support.graph_models import model, node, normal

NUMBERS = [-(2**63), -(2**31), -100, -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 100, 2**20, 2**31, 2**40,
           2**63 - 1]  # fmt: skip
FLOATS = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 0.5, 1e-30, 1e38, 3.4e38]
TEXTS = ["", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER", "nearest", "linear", "cubic", "floor",
         "half_pixel", "align_corners", "asymmetric", "edge", "reflect", "constant", "\0",
         "ä"]  # fmt: skip
OPERATORS = [
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Exp",
    "ConvTranspose", "Expand", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "If",
    "Identity", "LRN", "LayerNormalization", "Loop", "MatMul", "MaxPool", "Mul", "PRelu",
    "Pad", "Pow", "ReduceMean", "Relu", "Reshape", "Resize", "Shape", "Size", "Slice",
    "Softmax", "Split", "Squeeze", "Sum", "Tile", "Transpose", "Unsqueeze", "Where",
]  # fmt: skip


def bases() -> list[onnx.ModelProto]:
    """Valid models of many kinds of nodes; all read `x` and give `y`."""
    kernel = {"kernel_shape": [2, 2]}
    shuffled = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]), node("Reshape", "a groups", "b"),
        node("Transpose", "b", "c", perm=[0, 2, 1, 3, 4]), node("Reshape", "c flat", "d"),
        node("Pad", "d pads", "e"),
        node("MaxPool", "e", "f", strides=[2, 2], ceil_mode=1, **kernel),
        node("Slice", "f first last axes", "g"), node("Resize", "g _ scales", "h", mode="nearest"),
        node("ConvTranspose", "h up", "i", strides=[2, 2]), node("Softmax", "i", "y", axis=1),
    ]  # fmt: skip
    dense = [
        node("Conv", "x w", "a", strides=[2, 2], auto_pad="SAME_UPPER"),
        node("BatchNormalization", "a s s beta s", "c"), node("Relu", "c", "d"),
        node("AveragePool", "d", "e", count_include_pad=1, pads=[1, 0, 0, 1], **kernel),
        node("Split", "e", "f g", axis=1), node("Concat", "g f", "h", axis=1),
        node("Shape", "h", "shape"), node("Gather", "shape zero", "n"),
        node("Concat", "n rest", "target", axis=0), node("Reshape", "h target", "i"),
        node("Gemm", "i fc bias", "j", transB=1), node("LeakyRelu", "j", "k", alpha=0.3),
        node("ReduceMean", "k", "m", axes=[1], keepdims=1), node("Sub", "k m", "y"),
    ]  # fmt: skip
    ints = {name: np.array(v) for name, v in {
        "groups": [1, 2, 4, 8, 8], "flat": [1, 8, 8, 8], "pads": [0, 0, 1, 1, 0, 0, 0, 1],
        "first": [0, 1], "last": [4, 9], "axes": [2, 3], "zero": [0], "rest": [-1],
    }.items()}  # fmt: skip
    weights = {"w": normal(8, 4, 3, 3), "up": normal(8, 3, 2, 2), "s": np.full(8, 0.7, np.float32),
               "beta": normal(8), "scales": np.float32([1, 1, 2, 2]), "fc": normal(5, 128),
               "bias": normal(5)}  # fmt: skip

    def with_weights(nodes: list[onnx.NodeProto], opset: int) -> onnx.ModelProto:
        read = {x for n in nodes for x in n.input}
        return model(
            nodes, {x: a for x, a in {**ints, **weights}.items() if x in read}, opset=opset
        )

    text = """<ir_version: 10, opset_import: ["" : 18, "my" : 1]>
    g (float[1,4,8,8] x) => (float[] y) <float[4] s = {1, 2, 3, 4}, int8[4,4,1,1] q = {1,-2,3,4,
       5,6,-7,8,9,1,2,3,-4,5,6,7}, float step = {0.1}> {
        a = my.f <alpha = 0.3> (x)
        w = DequantizeLinear (q, step)
        c = Conv (a, w)
        n = InstanceNormalization (c, s, s)
        size = Size (n) many = Constant <value = int64 {256}> () yes = Equal (size, many)
        i = If (yes) <then_branch = t () => (u) {
                          one = Constant <value = float {2}> () u = Mul (n, one) },
                      else_branch = e () => (v) { v = Neg (n) }>
        b = my.f (i)
        y = Clip (b, step)
    }
    <domain: "my", opset_import: ["" : 17]>
    f <alpha: float = 0.7> (a) => (b) {
        one = LeakyRelu <alpha: float = @alpha> (a) b = Add (one, a) }
    """
    return [with_weights(shuffled, 17), with_weights(dense, 13), parser.parse_model(text)]


def mutant(whole: onnx.ModelProto, draw: random.Random) -> bytes:
    """The file of a model with some damage."""
    if draw.random() < 0.4:
        return _damaged(bytearray(whole.SerializeToString()), draw)
    m = onnx.ModelProto()
    m.CopyFrom(whole)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        draw.choice(CHANGES)(m, draw)
    return m.SerializeToString()


def _damaged(content: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(len(content))
        kind = draw.random()
        if kind < 0.4:
            content[at] ^= 1 << draw.randrange(8)
        elif kind < 0.75:
            content[at] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
        elif kind < 0.85:
            del content[at : at + draw.randrange(1, 9)]
        elif kind < 0.95:
            content[at:at] = content[at : at + draw.randrange(1, 9)]
        else:
            del content[at:]
        if not content:
            break
    return bytes(content)


def _nodes(m: onnx.ModelProto) -> list[onnx.NodeProto]:
    inner = [n for node in m.graph.node for a in node.attribute for n in a.g.node]
    return [*m.graph.node, *inner, *(n for f in m.functions for n in f.node)]


def _names(m: onnx.ModelProto) -> list[str]:
    return [x for n in _nodes(m) for x in (*n.input, *n.output)] + ["", "none"]


def _attribute(m: onnx.ModelProto, draw: random.Random) -> None:
    every = [(n, a) for n in _nodes(m) for a in n.attribute]
    if not every:
        return
    n, a = draw.choice(every)
    kind = draw.random()
    if kind < 0.1:
        n.attribute.remove(a)
    elif kind < 0.15:
        a.name = draw.choice(["axis", "pads", "x", ""])
    elif kind < 0.2:
        a.type = draw.randrange(15)
    elif kind < 0.25:
        n.attribute.add().CopyFrom(a)
    elif a.ints:
        change = draw.random()
        if change < 0.6:
            a.ints[draw.randrange(len(a.ints))] = draw.choice(NUMBERS)
        elif change < 0.8:
            del a.ints[-1]
        else:
            a.ints.append(draw.choice(NUMBERS))
    elif a.s:
        a.s = draw.choice(TEXTS).encode()
    elif a.type == a.FLOAT:
        a.f = draw.choice(FLOATS)
    else:
        a.i = draw.choice(NUMBERS)


def _added(m: onnx.ModelProto, draw: random.Random) -> None:
    value = draw.choice([draw.choice(NUMBERS), draw.choice(TEXTS), draw.choice(FLOATS),
                         [draw.choice(NUMBERS) for _ in range(draw.randrange(1, 6))]])  # fmt: skip
    name = draw.choice(["axis", "axes", "auto_pad", "ceil_mode", "dilations", "epsilon", "group",
                        "keepdims", "mode", "output_padding", "output_shape", "pads", "perm",
                        "strides", "to", "kernel_shape", "blocksize", "alpha"])  # fmt: skip
    chosen = draw.choice(_nodes(m))
    chosen.attribute.append(helper.make_attribute(name, value))


def _tensor(m: onnx.ModelProto, draw: random.Random) -> None:
    t = draw.choice(m.graph.initializer)
    kind = draw.random()
    if kind < 0.25 and t.dims:
        t.dims[draw.randrange(len(t.dims))] = draw.choice(NUMBERS)
    elif kind < 0.35 and len(t.dims) > 1:
        t.dims[:] = draw.sample(list(t.dims), len(t.dims))
    elif kind < 0.45:
        t.data_type = draw.randrange(28)
    elif kind < 0.5:
        t.raw_data = t.raw_data[: draw.randrange(1 + len(t.raw_data))]
    elif kind < 0.55:
        m.graph.initializer.remove(t)
    elif kind < 0.6:
        m.graph.initializer.add().CopyFrom(t)
    elif kind < 0.65:
        t.name = draw.choice(_names(m))
    elif kind < 0.7:
        t.data_location = t.EXTERNAL
        t.external_data.add(key="location", value=draw.choice(TEXTS))
    else:
        try:
            values = numpy_helper.to_array(t).copy()
        except (TypeError, ValueError):
            return  # it is damaged already
        few = NUMBERS if values.dtype == np.int64 else FLOATS if values.dtype == np.float32 else [0]
        if values.size:
            values.reshape(-1)[draw.randrange(values.size)] = draw.choice(few)
            t.CopyFrom(numpy_helper.from_array(values, t.name))


def _wire(m: onnx.ModelProto, draw: random.Random) -> None:
    n = draw.choice(_nodes(m))
    kind, name = draw.random(), draw.choice(_names(m))
    if kind < 0.5 and n.input:
        n.input[draw.randrange(len(n.input))] = name
    elif kind < 0.6 and n.input:
        del n.input[-1]
    elif kind < 0.75:
        n.input.append(name)
    elif kind < 0.9 and n.output:
        n.output[draw.randrange(len(n.output))] = name
    else:
        n.output.append(name)


def _node(m: onnx.ModelProto, draw: random.Random) -> None:
    nodes = m.graph.node
    n, kind = draw.choice(nodes), draw.random()
    if kind < 0.4:
        draw.choice(_nodes(m)).op_type = draw.choice(OPERATORS)
    elif kind < 0.5:
        nodes.remove(n)
    elif kind < 0.65:
        nodes.add().CopyFrom(n)
    elif kind < 0.8:
        order = draw.sample(list(nodes), len(nodes))
        del nodes[:]
        nodes.extend(order)
    elif kind < 0.9:
        n.domain = draw.choice(["ai.onnx", "my", "com.microsoft", "ai.onnx.ml"])
    else:
        extra = nodes.add()
        extra.CopyFrom(helper.make_node(draw.choice(OPERATORS), [n.output[0]] if n.output else [],
                                        ["extra"]))  # fmt: skip
        m.graph.output[0].name = draw.choice([m.graph.output[0].name, "extra"])


def _head(m: onnx.ModelProto, draw: random.Random) -> None:
    x = m.graph.input[0].type.tensor_type
    kind = draw.random()
    if kind < 0.3:
        x.shape.dim[draw.randrange(len(x.shape.dim))].dim_value = draw.choice(
            [*NUMBERS, *range(1, 20)]
        )
    elif kind < 0.4:
        x.elem_type = draw.randrange(28)
    elif kind < 0.45:
        del x.shape.dim[-1]
    elif kind < 0.5:
        x.shape.dim.add().dim_value = 2
    elif kind < 0.7:
        m.opset_import[0].version = draw.choice([*range(-1, 30), *NUMBERS])
    elif kind < 0.8:
        m.graph.output.add().name = draw.choice(_names(m))
    elif kind < 0.85:
        m.graph.output[0].name = draw.choice(_names(m))
    elif kind < 0.9:
        m.graph.input.append(
            helper.make_tensor_value_info(draw.choice(_names(m)), draw.choice([1, 7]), [2, 2])
        )
    elif kind < 0.95:
        m.ir_version = draw.choice([0, 3, 8, 10, 99])
    else:
        m.opset_import.add(domain=draw.choice(["", "ai.onnx", "my"]), version=draw.randrange(20))


Change = Callable[[onnx.ModelProto, random.Random], None]
CHANGES: list[Change] = [
    _attribute,
    _attribute,
    _added,
    _tensor,
    _tensor,
    _wire,
    _wire,
    _node,
    _head,
]
