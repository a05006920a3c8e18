"""EfficientNet-Lite0 (R. Liu, 2020): EfficientNet-B0 with ReLU6 and without squeeze-and-excite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INPUT, OUTPUT, SIZE, CLASSES = "input", "logits", 224, 1000

# blocks, kernel, stride of the first block, expansion, output channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_EPSILON = 1e-3


def efficientnet_lite0(weights: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The network with these weights, named as in lukemelas' EfficientNet-PyTorch."""
    net = _Network(weights)
    x = net.unit("_conv_stem", "_bn0", INPUT, stride=2)
    channels, index = 32, 0
    for blocks, kernel, first, expansion, oc in STAGES:
        for i in range(blocks):
            block, y = f"_blocks.{index}.", x
            if expansion > 1:
                y = net.unit(f"{block}_expand_conv", f"{block}_bn0", y)
            wide, stride = channels * expansion, 1 if i else first
            y = net.unit(f"{block}_depthwise_conv", f"{block}_bn1", y, kernel, stride, wide)
            y = net.unit(f"{block}_project_conv", f"{block}_bn2", y, relu6=False)
            x = net.put("Add", f"{block}add", y, x) if stride == 1 and channels == oc else y
            channels, index = oc, index + 1
    x = net.unit("_conv_head", "_bn1", x)
    x = net.put("Flatten", "flatten", net.put("GlobalAveragePool", "pool", x))
    net.put("Gemm", OUTPUT, x, *net.read("_fc.weight", "_fc.bias"), transB=1)
    return net.model()


class _Network:
    """ONNX nodes, called like their outputs, and the weights that they read."""

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self._weights, self._nodes = weights, list[onnx.NodeProto]()
        self._limits = {"zero": np.float32(0), "six": np.float32(6)}
        self._read = dict[str, onnx.TensorProto]()

    def put(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns its output."""
        self._nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def read(self, *names: str) -> tuple[str, ...]:
        """The names of weights, which become part of the model."""
        for name in names:
            values = self._limits.get(name, self._weights.get(name))
            self._read[name] = numpy_helper.from_array(np.asarray(values, np.float32), name)
        return names

    def unit(
        self,
        conv: str,
        norm: str,
        x: str,
        kernel: int = 0,
        stride: int = 1,
        groups: int = 1,
        relu6: bool = True,
    ) -> str:
        """Convolution, batch normalisation and ReLU6; padded as TensorFlow's SAME."""
        weights = self.read(f"{conv}.weight")
        x = self.put(
            *("Conv", conv, x, *weights),
            auto_pad="SAME_UPPER",
            strides=[stride, stride],
            group=groups,
        )
        values = "weight", "bias", "running_mean", "running_var"
        parameters = self.read(*(f"{norm}.{value}" for value in values))
        x = self.put("BatchNormalization", norm, x, *parameters, epsilon=_EPSILON)
        return self.put("Clip", f"{norm}.relu6", x, *self.read("zero", "six")) if relu6 else x

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        shapes = (INPUT, (1, 3, SIZE, SIZE)), (OUTPUT, (1, CLASSES))
        ends = [helper.make_tensor_value_info(x, TensorProto.FLOAT, s) for x, s in shapes]
        graph = helper.make_graph(
            self._nodes, "efficientnet-lite0", ends[:1], ends[1:], list(self._read.values())
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
