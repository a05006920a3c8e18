"""A convolution problem, with its epilogue, as an ONNX model of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fastrun.kernels.core.problem import ConvProblem, slope

OPSET, IR_VERSION = 17, 8
INPUT, ADD, OUTPUT = "x", "add", "y"

# Steps (name, operator, inputs, attributes) and constants of each activation, as exporters write
# them in this opset; x is the input of the activation.
_Steps = list[tuple[str, str, str, dict[str, float]]]
_ACTIVATIONS: dict[str, tuple[_Steps, dict[str, float]]] = {
    "relu": ([("relu", "Relu", "x", {})], {}),
    "relu6": ([("clip", "Clip", "x low high", {})], {"low": 0, "high": 6}),
    "hardswish": ([("hardswish", "HardSwish", "x", {})], {}),
    "sigmoid": ([("sigmoid", "Sigmoid", "x", {})], {}),
    "hardsigmoid": ([("hardsigmoid", "HardSigmoid", "x", {"alpha": 1 / 6, "beta": 0.5})], {}),
    "silu": ([("gate", "Sigmoid", "x", {}), ("silu", "Mul", "x gate", {})], {}),
    "tanh": ([("tanh", "Tanh", "x", {})], {}),
    "gelu": (
        [
            ("scaled", "Div", "x root", {}),
            ("erf", "Erf", "scaled", {}),
            ("gate", "Add", "erf one", {}),
            ("gated", "Mul", "x gate", {}),
            ("gelu", "Mul", "gated half", {}),
        ],
        {"root": 2**0.5, "one": 1, "half": 0.5},
    ),
    "gelu_tanh": (
        [
            ("square", "Mul", "x x", {}),
            ("cube", "Mul", "square x", {}),
            ("share", "Mul", "cube factor", {}),
            ("sum", "Add", "x share", {}),
            ("scaled", "Mul", "sum root", {}),
            ("tanh", "Tanh", "scaled", {}),
            ("gate", "Add", "tanh one", {}),
            ("gated", "Mul", "x gate", {}),
            ("gelu", "Mul", "gated half", {}),
        ],
        {"factor": 0.044715, "root": 0.79788456, "one": 1, "half": 0.5},
    ),
}


def _written(activation: str) -> tuple[_Steps, dict[str, float]]:
    factor = slope(activation)
    if factor is None:
        return _ACTIVATIONS[activation]
    return [("leaky", "LeakyRelu", "x", {"alpha": factor})], {}


def one_layer(p: ConvProblem, operands: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The model, with weights inside. Its inputs are `x` and, if the problem has one, `add`.

    `operands` has weights and bias. The bias may be longer than the problem's channels.
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
    if p.activation:
        steps, constants = _written(p.activation)
        weights |= {name: np.array(value, np.float32) for name, value in constants.items()}
        last = nodes[-1].output[0]
        for name, operator, given, attributes in steps:
            inside = [last if x == "x" else x for x in given.split()]
            node = helper.make_node(operator, inside, [name], name)
            node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
            nodes.append(node)
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
