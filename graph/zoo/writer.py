"""Writes an ONNX network layer by layer; the layer's name is the seed of its random weights."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

OPSET = 17
IR_VERSION = 8


class Writer:
    """One ONNX network that is being written.

    Every layer method takes the name of its input tensor, adds nodes and returns the name of its
    output tensor. Weights of convolutions and dense layers are He-uniform. The statistics of batch
    normalisation are like those of a trained network: no mean is 0 and no variance is 1.
    """

    def __init__(self, name: str, shape: Sequence[int] = (1, 3, 224, 224)) -> None:
        self.name = name
        self.input = "input"
        self._shape = tuple(shape)
        # Weights go straight into the final message: building it from parts copies them 3 times.
        self._model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="fastrun-toolkit")
        self._model.opset_import.append(helper.make_opsetid("", OPSET))
        self._graph = self._model.graph
        self._graph.name = name
        self._channels = {self.input: self._shape[1]}

    def channels(self, x: str) -> int:
        """Channels of tensor `x`."""
        return self._channels[x]

    def conv(
        self,
        name: str,
        x: str,
        oc: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> str:
        """A square convolution with `padding` pixels on each side."""
        shape = (oc, self._channels[x] // groups, kernel, kernel)
        inputs = [x, self._he_uniform(f"{name}.weight", shape)]
        if bias:
            inputs.append(self._normal(f"{name}.bias", (oc,), 0.1))
        return self._node(
            "Conv",
            name,
            inputs,
            oc,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[padding] * 4,
            group=groups,
        )

    def batch_norm(self, name: str, x: str, gain: float = 1.0) -> str:
        """Batch normalisation; `gain` < 1 keeps the sum of many residual branches bounded."""
        c = self._channels[x]
        parameters = [
            self._uniform(f"{name}.weight", (c,), 0.8 * gain, 1.2 * gain),
            self._normal(f"{name}.bias", (c,), 0.1),
            self._normal(f"{name}.running_mean", (c,), 0.1),
            self._uniform(f"{name}.running_var", (c,), 0.5, 1.5),
        ]
        return self._node("BatchNormalization", name, [x, *parameters], c, epsilon=1e-5)

    def relu(self, name: str, x: str) -> str:
        """max(x, 0)."""
        return self._node("Relu", name, [x], self._channels[x])

    def relu6(self, name: str, x: str) -> str:
        """x clipped to 0..6."""
        low = self._constant(f"{name}.min", np.array(0, np.float32))
        high = self._constant(f"{name}.max", np.array(6, np.float32))
        return self._node("Clip", name, [x, low, high], self._channels[x])

    def max_pool(
        self,
        name: str,
        x: str,
        kernel: int,
        stride: int,
        *,
        padding: int = 0,
        ceil: bool = False,
    ) -> str:
        """Square max pooling; `ceil` keeps a last window that is only partly inside."""
        return self._node(
            "MaxPool",
            name,
            [x],
            self._channels[x],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[padding] * 4,
            ceil_mode=int(ceil),
        )

    def global_average_pool(self, name: str, x: str) -> str:
        """The mean of each channel, as a 1x1 image."""
        return self._node("GlobalAveragePool", name, [x], self._channels[x])

    def dropout(self, name: str, x: str) -> str:
        """Dropout; it does nothing in inference."""
        return self._node("Dropout", name, [x], self._channels[x])

    def add(self, name: str, a: str, b: str) -> str:
        """a + b."""
        return self._node("Add", name, [a, b], self._channels[a])

    def concat(self, name: str, parts: Sequence[str]) -> str:
        """The channels of all parts, one after another."""
        return self._node("Concat", name, parts, sum(self._channels[p] for p in parts), axis=1)

    def halves(self, name: str, x: str) -> tuple[str, str]:
        """The first and the second half of the channels."""
        half = self._channels[x] // 2
        sizes = self._constant(f"{name}.sizes", np.array([half, half]))
        outputs = (f"{name}.0", f"{name}.1")
        self._graph.node.append(helper.make_node("Split", [x, sizes], outputs, name=name, axis=1))
        self._channels |= dict.fromkeys(outputs, half)
        return outputs

    def shuffle_channels(self, name: str, x: str, groups: int, hw: int) -> str:
        """Channel shuffle of an image `hw` pixels high and wide: transpose (groups, c / groups)."""
        c = self._channels[x]
        split = self._constant(f"{name}.split", np.array([0, groups, c // groups, hw, hw]))
        merge = self._constant(f"{name}.merge", np.array([0, c, hw, hw]))
        x = self._node("Reshape", f"{name}.grouped", [x, split], c)
        x = self._node("Transpose", f"{name}.transposed", [x], c, perm=[0, 2, 1, 3, 4])
        return self._node("Reshape", name, [x, merge], c)

    def flatten(self, name: str, x: str, pixels: int = 1) -> str:
        """One row per image, of channels * `pixels` values."""
        return self._node("Flatten", name, [x], self._channels[x] * pixels, axis=1)

    def dense(self, name: str, x: str, oc: int) -> str:
        """A fully connected layer with bias."""
        weights = self._he_uniform(f"{name}.weight", (oc, self._channels[x]))
        bias = self._normal(f"{name}.bias", (oc,), 0.1)
        return self._node("Gemm", name, [x, weights, bias], oc, transB=1)

    def model(self, x: str) -> onnx.ModelProto:
        """The network whose only output is `x`, rows of logits."""
        self._graph.node[-1].output[0] = "logits"
        ends = (
            (self._graph.input, self.input, self._shape),
            (self._graph.output, "logits", (self._shape[0], self._channels[x])),
        )
        for values, name, shape in ends:
            values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return self._model

    def _node(
        self, op: str, name: str, inputs: Sequence[str], channels: int, **attributes: Any
    ) -> str:
        self._graph.node.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self._channels[name] = channels
        return name

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self._graph.initializer.add(
            name=name,
            dims=values.shape,
            data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
            raw_data=values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(),
        )
        return name

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{self.name}/{name}".encode()))

    def _he_uniform(self, name: str, shape: tuple[int, ...]) -> str:
        bound = (6 / np.prod(shape[1:])) ** 0.5
        return self._uniform(name, shape, -bound, bound)

    def _normal(self, name: str, shape: tuple[int, ...], deviation: float) -> str:
        values = self._generator(name).standard_normal(shape, dtype=np.float32)
        values *= np.float32(deviation)
        return self._constant(name, values)

    def _uniform(self, name: str, shape: tuple[int, ...], low: float, high: float) -> str:
        values = self._generator(name).random(shape, dtype=np.float32)
        values *= np.float32(high - low)
        values += np.float32(low)
        return self._constant(name, values)
