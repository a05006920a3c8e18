"""A convolution problem as an ONNX model of one layer, with the epilogue that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from kernels.core.problem import ConvProblem

OPSET, IR_VERSION = 17, 8
INPUT, ADD, OUTPUT = "x", "add", "y"


def one_layer(p: ConvProblem, operands: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The model; inputs are `x` and, where the problem has one, `add`. The weights are inside.

    `operands` has weights and bias; bias may be longer than the problem's channels.
    """
    weights = {"weights": operands["weights"]}
    if p.bias:
        weights["bias"] = operands["bias"][: p.oc]
    nodes = [
        helper.make_node(
            "Conv",
            [INPUT, *weights],
            ["conv"],
            name="conv",
            kernel_shape=p.kernel,
            strides=p.stride,
            pads=p.padding,
            dilations=p.dilation,
            group=p.groups,
        )
    ]
    if p.add:
        nodes.append(helper.make_node("Add", ["conv", ADD], ["sum"], name="sum"))
    last = nodes[-1].output[0]
    if p.activation == "relu6":
        weights |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
        nodes.append(helper.make_node("Clip", [last, "low", "high"], [OUTPUT], name="clip"))
    elif p.activation:
        operator = {"relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid"}[p.activation]
        nodes.append(helper.make_node(operator, [last], [OUTPUT], name=p.activation))
    nodes[-1].output[0] = OUTPUT
    result = (p.n, p.oc, p.oh, p.ow)
    inputs = [(INPUT, (p.n, p.c, p.h, p.w)), *([(ADD, result)] if p.add else [])]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in inputs],
        [helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, result)],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in weights.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
