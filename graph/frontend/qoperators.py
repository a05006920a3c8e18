"""Writes out operators that compute with quantised integers, in the three steps that they mean.

They dequantise their inputs, compute with numbers, and quantise the result. ONNX defines
QLinearConv and QLinearMatMul so; the others are onnxruntime's, of the domain com.microsoft.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from fastrun.graph.core.model import Array
from fastrun.graph.frontend.lowering.site import Unsupported
from fastrun.graph.frontend.steps import ROUNDS
from fastrun.graph.frontend.writing import Writing

# The `accuracy_level` of MatMulNBits that allows input in bytes.
_BYTES = 4

# Operators of onnxruntime of one input, and those that they compute with numbers.
_UNARY = {
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
}
_BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul"}
_OWN = {"QLinearConv", "QLinearMatMul"}  # of ONNX's own domain
_MICROSOFT = {*_UNARY, *_BINARY, "QGemm", "QLinearConcat", "MatMulNBits"}
_OPTIONS = {"channels_last", "opset"}


def computes_integers(node: onnx.NodeProto) -> bool:
    """Whether a node is one of these operators."""
    return node.op_type in {"": _OWN, "com.microsoft": _MICROSOFT}.get(node.domain, ())


def scales_read(node: onnx.NodeProto) -> list[str]:
    """The scales and zero points that one of ONNX's own operators of this kind reads."""
    return [] if node.domain else [x for i, x in enumerate(node.input) if x and i not in (0, 3, 8)]


class QuantisedOperator(Writing):
    """The nodes that take the place of one of these operators."""

    def written(self, opset: int) -> list[onnx.NodeProto]:
        """The nodes, of an opset of ONNX.

        Raises:
            Unsupported: no such nodes compute the same.
            GraphError: the node contradicts itself.
        """
        if self._given.get("channels_last"):
            raise Unsupported("channels first: export the model in NCHW")
        if self._given.get("opset", 13) < 13 <= opset:
            raise Unsupported("a Softmax of the model's own opset")
        kept = {k: v for k, v in self._given.items() if k not in _OPTIONS}
        match self._node.op_type:
            case "QLinearConv":
                self._conv(kept)
            case "QLinearMatMul":
                columns = self._scaled(3, 4, 5, axis=-1)
                self._finish("MatMul", [self._scaled(0, 1, 2), columns], 6, 7)
            case "QGemm":
                self._gemm(kept)
            case "QLinearConcat":
                parts = range(2, len(self._node.input), 3)
                self._finish("Concat", [self._scaled(i, i + 1, i + 2) for i in parts], 0, 1, **kept)
            case "MatMulNBits":
                self._blocks(kept)
            case operator if operator in _BINARY:
                inputs = [self._scaled(0, 1, 2), self._scaled(3, 4, 5)]
                self._finish(_BINARY[operator], inputs, 6, 7)
            case operator:
                self._finish(_UNARY[operator], [self._scaled(0, 1, 2)], 3, 4, **kept)
        return self.nodes

    def _scaled(self, x: int, scale: int, zero: int, axis: int | None = None) -> str:
        """The numbers for an input, whose scale and zero point are further inputs."""
        inputs = [self._input(x), self._input(scale), self._input(zero, needed=False)]
        return self._put("DequantizeLinear", inputs, axis=1 if axis is None else axis)

    def _bias(self, index: int, scales: tuple[int, int], factor: float = 1.0) -> list[str]:
        """The numbers for a bias, which has the scale of the products."""
        name = self._input(index, needed=False)
        if not name:
            return []
        a, b = (self._known(i, "scales").reshape(-1) for i in scales)
        if min(a.size, b.size) != 1:
            raise self._impossible("both of its inputs have a scale per channel")
        scale = (a * b * np.float32(factor)).astype(np.float32)
        scale = scale.reshape(()) if scale.size == 1 else scale
        inputs = [name, self._constant(f"{name}.scale", scale)]
        return [self._put("DequantizeLinear", inputs, axis=0)]

    def _finish(
        self, operator: str, inputs: list[str], scale: int, zero: int, **attributes: Any
    ) -> None:
        """Compute the result with numbers and quantise it; without a scale it stays numbers."""
        step, start = self._input(scale, needed=False), self._input(zero, needed=False)
        output = self._node.output[0]
        if not step:
            self._put(operator, inputs, output, **attributes)
            return
        if not start:
            kind = self._types(self._input(2 if operator == "Concat" else 0))
            start = self._constant(f"{output}.zero", np.zeros((), kind))
        result = self._put(operator, inputs, **attributes)
        self._put("QuantizeLinear", [result, step, start], output)

    def _conv(self, kept: Mapping[str, Any]) -> None:
        inputs = [self._scaled(0, 1, 2), self._scaled(3, 4, 5, axis=0), *self._bias(8, (1, 4))]
        self._finish("Conv", inputs, 6, 7, **kept)

    def _gemm(self, kept: Mapping[str, Any]) -> None:
        columns = self._scaled(3, 4, 5, axis=0 if kept.get("transB") else 1)
        bias = self._bias(6, (1, 4), kept.get("alpha", 1.0))
        self._finish("Gemm", [self._scaled(0, 1, 2), columns, *bias], 7, 8, **kept)

    def _blocks(self, kept: Mapping[str, Any]) -> None:
        """A product with weights (n, k) of few bits, `block_size` of which share a scale."""
        n, k, size = (int(kept.get(name, 0)) for name in ("N", "K", "block_size"))
        bits = int(kept.get("bits", 4))
        if self._input(4, needed=False):
            raise Unsupported("weights in order: quantise it without g_idx")
        if bits not in (2, 4, 8) or min(n, k) < 1 or size < 1:
            raise self._impossible(f"{bits} bits, {n} x {k} weights, blocks of {size}")
        blocks = -(-k // size)
        packed, scale = self._known(1, "weights"), self._known(2, "scales")
        stored = self._unpacked(packed, bits, n, blocks * size)[:, :k]
        if scale.size != n * blocks:
            raise self._impossible(f"it has {scale.size} scales instead of {n * blocks}")
        inputs = [self._constant("stored", stored)]
        inputs.append(self._constant("scale", scale.reshape(n, blocks)))
        if self._input(3, needed=False):
            zero = self._known(3, "zero points")
            if zero.dtype.kind == "f":
                raise Unsupported("integers as zero points")
            zero = self._unpacked(zero, bits, n, blocks)
        else:
            zero = np.full((n, blocks), 2 ** (bits - 1), np.uint8)
        inputs.append(self._constant("zero", zero))
        marks: dict[str, Any] = {ROUNDS: 1} if int(kept.get("accuracy_level", 0)) == _BYTES else {}
        weights = self._put("DequantizeLinear", inputs, axis=1, block_size=size, **marks)
        weights = self._put("Transpose", [weights], perm=[1, 0])
        bias = self._input(5, needed=False)
        operands, output = [self._input(0), weights], self._node.output[0]
        if bias:
            self._put("Add", [self._put("MatMul", operands), bias], output)
        else:
            self._put("MatMul", operands, output)

    def _unpacked(self, packed: Array, bits: int, rows: int, columns: int) -> Array:
        """The integers of each row of bytes, the lowest bits of a byte first."""
        each = -(-columns * bits // 8)
        if packed.dtype != np.uint8 or packed.size != rows * each:
            raise self._impossible(f"{packed.size} bytes instead of {rows * each}")
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        parts = (packed.reshape(rows, each, 1) >> shifts) & np.uint8(2**bits - 1)
        return parts.reshape(rows, -1)[:, :columns]
