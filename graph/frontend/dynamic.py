"""Writes out operators of dynamic quantisation, whose scales are computed in every run.

An activation is rounded to unsigned bytes in the range of its own values (DynamicQuantizeLinear),
multiplied by constant integers (MatMulInteger, ConvInteger), and the sums are scaled. Here the
bytes are a tensor on the grid of the numbers 0 to 255, so that the products are those of any
quantised layer. What the zero point adds to the sums, which is known only in a run, is subtracted
behind it: it is the zero point times the sums of the weights. Zero points of weights are constants
and belong to the weights.

onnxruntime's `quantize_dynamic` writes these operators, and its optimiser those of the domain
com.microsoft that join several of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fastrun.graph.core.model import Array, Node
from fastrun.graph.core.ops import (
    Clip,
    Concat,
    Identity,
    Pool,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    Transpose,
    Unary,
)
from fastrun.graph.frontend.lowering.site import Unsupported
from fastrun.graph.frontend.writing import Writing

_SUMS = {"MatMulInteger", "ConvInteger"}
_MICROSOFT = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM"}
_FLOAT = onnx.TensorProto.FLOAT
# What is never negative, whatever it reads.
_NONNEGATIVE = {"relu", "relu6", "sigmoid", "hardsigmoid", "abs", "exp", "softplus"}


def is_dynamic(node: onnx.NodeProto) -> bool:
    """Whether a node is one of these operators."""
    own = {"DynamicQuantizeLinear", *_SUMS}
    return node.op_type in {"": own, "com.microsoft": _MICROSOFT}.get(node.domain, ())


def sums_of(node: onnx.NodeProto) -> str:
    """The name of the int32 sums that a node computes, "" if it computes none."""
    return node.output[0] if node.op_type in _SUMS and not node.domain else ""


def is_nonnegative(name: str, producer: Callable[[str], Node | None]) -> bool:
    """Whether no number of a tensor is negative, as the operators before it show."""
    node = producer(name)
    match node.op if node else None:
        case Unary(function=function):
            return function in _NONNEGATIVE
        case Clip(low=low):
            return low >= 0
        case Softmax(log=log):
            return not log
        case Pool() | Reduce() | Reshape() | Transpose() | Slice() | Identity() | Concat():
            assert node is not None
            return all(is_nonnegative(x, producer) for x in node.inputs)
    return False


class DynamicOperator(Writing):
    """The nodes that take the place of one of these operators."""

    def written(self, nonnegative: Callable[[str], bool]) -> list[onnx.NodeProto]:
        """The nodes; `nonnegative` says whether a tensor has no negative numbers.

        Raises:
            Unsupported: no such nodes compute the same.
            GraphError: the node contradicts itself.
        """
        match self._node.op_type:
            case "DynamicQuantizeLinear":
                if len(self._node.output) != 3:
                    raise self._impossible(f"it has {len(self._node.output)} outputs, not 3")
                self._quantise(nonnegative(self._input(0)))
            case "MatMulInteger":
                self._product()
            case "ConvInteger":
                self._convolution()
            case "DynamicQuantizeMatMul":
                stored = self._bytes(self._input(0))
                self._scaled(stored, scale=2, zero=3, bias=4)
            case "MatMulIntegerToFloat":
                stored = self._input(0), self._input(2), self._input(4, needed=False)
                self._scaled(stored, scale=3, zero=5, bias=6)
            case _:
                self._lstm()
        return self.nodes

    def _number(self, value: float, kind: Any = np.float32) -> str:
        return self._constant(self._node.output[0], np.array(value, kind))

    def _whole(self, x: str, output: str) -> None:
        """Round numbers to bytes, which stand for themselves."""
        self._put("QuantizeLinear", [x, self._number(1), self._number(0, np.uint8)], output)

    def _quantise(self, nonnegative: bool) -> None:
        """Scale and zero point such that 0 and all values are in the range, and the bytes."""
        x, (y, scale, zero) = self._input(0), self._node.output
        top = self._put("Max", [self._put("ReduceMax", [x], keepdims=0), self._number(0)])
        bottom, size = "", top
        if not nonnegative:
            lowest = self._put("ReduceMin", [x], keepdims=0)
            bottom = self._put("Min", [lowest, self._number(0)])
            size = self._put("Sub", [top, bottom])
        step = self._put("Div", [size, self._number(255)])
        # Of zeros any scale is right.
        step = self._put("Max", [step, self._number(float(np.finfo(np.float32).tiny))], scale)
        steps = self._put("Div", [x, step])
        if nonnegative:
            self._put("Constant", [], zero, value=numpy_helper.from_array(np.zeros((), np.uint8)))
        else:
            start = self._put("Round", [self._put("Neg", [self._put("Div", [bottom, step])])])
            self._whole(start, zero)
            # Ties go to the even step before the shift.
            steps = self._put("Add", [self._put("Round", [steps]), start])
        self._whole(steps, y)

    def _numbers(self, name: str) -> str:
        """The integers of a computed value, as numbers."""
        kind = self._types(name)
        if name in self._constants:
            raise Unsupported("integers that are computed on the left, constants on the right")
        return self._put("DequantizeLinear", [name, self._number(1), self._number(0, kind)])

    def _weights(self, index: int, zero: int, axis: int) -> tuple[str, Array]:
        """Constant integers less their zero points, by name and as an array."""
        stored = self._known(index, "weights")
        name = self._input(zero, needed=False)
        start = self._known(zero, "zero points") if name else np.zeros((), stored.dtype)
        start = start.reshape(()) if start.size == 1 else start
        if start.ndim > 1 or stored.ndim < 2 or start.size not in (1, stored.shape[axis]):
            raise Unsupported("zero points of a tensor or of output channels")
        scale = self._constant(name or "scale", np.ones(start.shape, np.float32))
        inputs = [self._input(index), scale, self._constant("zero", start)]
        along = [-1 if i == axis % stored.ndim else 1 for i in range(stored.ndim)]
        less = start.reshape(along) if start.ndim else start
        numbers = stored.astype(np.float32) - less.astype(np.float32)
        return self._put("DequantizeLinear", inputs, axis=axis % stored.ndim), numbers

    def _zero(self, index: int) -> str:
        """The zero point of the activations as a number; "" if it is 0 in every run."""
        name = self._input(index, needed=False)
        if name in self._constants:
            zero = self._constants[name]
            if zero.size != 1:
                raise Unsupported("one zero point for all rows")
            return self._number(float(zero.reshape(()))) if zero.any() else ""
        return self._numbers(name) if name else ""

    def _product(self) -> None:
        weights, numbers = self._weights(1, 3, axis=-1)
        x, zero = self._numbers(self._input(0)), self._zero(2)
        self._corrected("MatMul", [x, weights], zero, numbers.sum(axis=-2))

    def _convolution(self) -> None:
        weights, numbers = self._weights(1, 3, axis=0)
        x, zero = self._numbers(self._input(0)), self._zero(2)
        if zero and (any(self._given.get("pads", ())) or self._same()):
            # What is outside counts as the zero point, so the sums at the edges are others.
            self._put("Conv", [self._put("Sub", [x, zero]), weights], self._output, **self._given)
            return
        sums = numbers.sum(axis=tuple(range(1, numbers.ndim)))
        sums = sums.reshape(-1, *(1,) * (numbers.ndim - 2))
        self._corrected("Conv", [x, weights], zero, sums, **self._given)

    @property
    def _output(self) -> str:
        return str(self._node.output[0])

    def _same(self) -> bool:
        return self._given.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")

    def _corrected(
        self, operator: str, inputs: list[str], zero: str, sums: Array, **attributes: Any
    ) -> None:
        """The sums of products, less those of the zero point and the weights."""
        total = self._put(operator, inputs, "" if zero else self._output, **attributes)
        if zero:
            factors = [zero, self._constant("sums", sums.astype(np.float32))]
            self._put("Sub", [total, self._put("Mul", factors)], self._output)

    def _bytes(self, x: str) -> tuple[str, str, str]:
        """Quantise a tensor by its own range: the bytes, the scale and the zero point."""
        names = [self._fresh(f"{self._output}.{part}") for part in ("bytes", "scale", "zero")]
        node = helper.make_node("DynamicQuantizeLinear", [x], names, f"{names[0]}/quantise")
        self.nodes.append(node)
        return names[0], names[1], names[2]

    def _scaled(self, stored: tuple[str, str, str], scale: int, zero: int, bias: int) -> None:
        """A product of integers as numbers, with both scales and a bias."""
        x, step, start = stored
        own = self._input(zero, needed=False)
        inputs = [x, self._input(1), start, own]
        sums = self._put("Cast", [self._put("MatMulInteger", inputs)], to=_FLOAT)
        factor = self._put("Mul", [step, self._input(scale)])
        added = self._input(bias, needed=False)
        product = self._put("Mul", [sums, factor], "" if added else self._output)
        if added:
            self._put("Add", [product, added], self._output)

    def _lstm(self) -> None:
        """An LSTM of rounded weights and inputs; its states between the steps stay numbers."""
        names = [self._node.input[i] if i < len(self._node.input) else "" for i in range(12)]
        for i, at in ((1, 8), (2, 10)):
            stored, scale = self._known(i, "weights"), self._known(at, "scales")
            zero = self._known(at + 1, "zero points") if names[at + 1] else np.zeros((), np.int8)
            if stored.ndim != 3 or scale.size not in (1, len(scale), stored[:, 0].size):
                raise self._impossible(f"weights {stored.shape} have {scale.size} scales")
            wide = [a.reshape(len(a) if a.ndim else 1, 1, -1) for a in (scale, zero)]
            numbers = (stored.astype(np.float32) - wide[1].astype(np.float32)) * wide[0]
            names[i] = self._constant(names[i], numbers.transpose(0, 2, 1).astype(np.float32))
        x, step, start = self._bytes(names[0])
        one, nothing = self._number(1), self._number(0, np.uint8)
        whole = [self._put("DequantizeLinear", [part, one, nothing]) for part in (x, start)]
        names[0] = self._put("Mul", [self._put("Sub", whole), step])
        self.nodes.append(
            helper.make_node("LSTM", names[:8], [*self._node.output], self._output, **self._given)
        )
