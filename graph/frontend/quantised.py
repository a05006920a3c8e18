"""Decides what the integers of a quantised model mean to a graph, which computes with numbers.

A value that QuantizeLinear computes becomes the numbers for which its integers stand, rounded to a
grid. DequantizeLinear then has nothing to do. Between the two a model may only move integers. Where
there is no grid (more than 8 bits, several scales), the steps of rounding are written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Array, Node
from fastrun.graph.core.ops import Binary, Cast, Numpy, Unary
from fastrun.graph.frontend.file import label
from fastrun.graph.frontend.lowering.site import Unsupported
from fastrun.graph.frontend.steps import Steps, is_whole, read_steps
from fastrun.graph.frontend.values import Values
from fastrun.graph.frontend.weights import Weights

QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_MICROSOFT = "com.microsoft"
# Operators that only choose among values, and the index of an operand that is a further value.
_NAMES = """
Identity Reshape Flatten Squeeze Unsqueeze Transpose Slice Split Concat Expand Gather DepthToSpace
SpaceToDepth MaxPool GlobalMaxPool Resize Upsample
"""
_MOVES: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(_NAMES.split(), ()),
    "Pad": (2,),
    "Clip": (1, 2),
}
# An operator and constants that it reads.
_Step = tuple[str] | tuple[str, Array] | tuple[str, Array, Array]


@dataclass(frozen=True)
class Stored:
    """A value that is integers in the model, of these steps, if any node gave it some.

    If it is `raw`, its numbers are those integers; else they are what the integers stand for.
    """

    steps: Steps | None
    dtype: np.dtype[np.generic]
    raw: bool = False


@dataclass(frozen=True)
class Meaning:
    """What a node means: a constant, or nodes that take its place, or else its first input."""

    constant: Array | None = None
    nodes: Sequence[onnx.NodeProto] = ()


class Quantised:
    """The quantised ones among the values of a model that is being read."""

    def __init__(self, values: Values) -> None:
        self.weights = Weights(values.constants)
        self._values = values
        self._tensors, self._constants = values.tensors, values.constants
        self._fresh, self._constant = values.fresh, values.constant
        self.stored: dict[str, Stored] = {}
        self.grids: dict[str, Grid] = {}
        self.notes: list[str] = []
        self._written: set[str] = set()  # results of nodes written here
        self._integers: dict[str, str] = {}  # of stored values, for NumPy

    def meaning(self, node: onnx.NodeProto) -> Meaning | None:
        """The meaning of a quantising or dequantising node, None for any other node.

        Raises:
            Unsupported: the graph cannot express it.
            GraphError: its scale or zero point are unusable.
        """
        if node.op_type not in QUANTISERS or node.domain not in ("", _MICROSOFT):
            return None
        if not 2 <= len(node.input) <= 3 or not all(node.input[:2]) or len(node.output) != 1:
            raise GraphError(f"node {label(node)} is impossible: it has {len(node.input)} inputs")
        scale, zero = (self._parameter(node, i) for i in (1, 2))
        assert scale is not None
        if node.op_type == "QuantizeLinear":
            return self._quantise(node, scale, zero)
        return self._dequantise(node, scale, zero)

    def moved(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node, in a form that moves numbers in the place of quantised integers.

        Raises:
            Unsupported: it calculates with them.
        """
        names = [x for x in node.input if x in self.stored]
        if not names or self._written.intersection(node.output):
            return node
        first = self.stored[names[0]]
        if node.op_type == "Cast" and not node.domain and first.raw:
            return node  # an integer is itself, whatever its type
        further = _MOVES.get(node.op_type)
        chooses = further is not None and not node.domain and _is_choice(node)
        if not chooses or any(self.stored[x] != first for x in names):
            raise Unsupported("kernels for integers: quantise it again between float operators")
        if first.steps and first.steps.axis is not None:
            raise Unsupported("one scale for all channels of its input")
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.op_type == "Pad" and len(node.input) < 3:
            copy.input.append("")
        for index in further or ():
            if index < len(copy.input):
                copy.input[index] = self._number(copy, index, first)
        if node.op_type == "Concat" and len(names) < len(node.input):
            raise Unsupported("computed inputs")
        self.stored |= dict.fromkeys(filter(None, node.output), first)
        return copy

    def integers_of(self, name: str) -> np.dtype[np.generic]:
        """The type of a value that is integers in the model.

        Raises:
            Unsupported: it is not.
        """
        if name in self._constants:
            return self._constants[name].dtype
        if name not in self.stored:
            raise Unsupported(f"an input that is quantised, which {name!r} is not")
        return self.stored[name].dtype

    def returned(self, name: str, nodes: list[Node]) -> None:
        """Append the nodes that compute an output's integers from the numbers that they stand for.

        Raises:
            UnsupportedError: the integers have less than 8 bits.
        """
        stored = self.stored[name]
        if stored.dtype.name not in ("int8", "uint8", "int16", "uint16"):
            raise UnsupportedError(f"output {name!r} is {stored.dtype}: remove its last quantiser")
        if stored.raw or not stored.steps:
            return
        numbers = self._fresh(f"{name}.numbers")
        self._tensors[numbers] = self._tensors[name]
        if name in self.grids:
            self.grids[numbers] = self.grids.pop(name)
        for i, node in enumerate(nodes):
            inputs, outputs = (
                tuple(numbers if x == name else x for x in names)
                for names in (node.inputs, node.outputs)
            )
            nodes[i] = replace(node, inputs=inputs, outputs=outputs)
        nodes += self._rounded(numbers, stored.steps, name)

    def of_integers(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, list[Node]]:
        """The node reading integers as the model has them, where the graph has their numbers.

        The nodes beside it compute these integers.
        """
        copy, added = onnx.NodeProto(), list[Node]()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            if name in self.stored and name not in self._integers:
                integers = self._integers[name] = self._fresh(f"{name}.integers")
                self._values.define(integers)
                added += self._as_integers(name, integers)
                kind = self.stored[name].dtype
                self._values.set_tensor(integers, replace(self._tensors[name], dtype=kind))
            copy.input[i] = self._integers.get(name, name)
        return copy, added

    def _as_integers(self, name: str, output: str) -> list[Node]:
        """The nodes that compute the integers of a stored value, as NumPy reads them."""
        stored, nodes, whole = self.stored[name], list[Node](), name
        if stored.steps and not stored.raw:
            whole = self._fresh(f"{name}.steps")
            nodes = self._rounded(name, stored.steps, whole)
        return [*nodes, Node(output, Numpy(Cast()), (whole,), (output,))]

    def _rounded(self, numbers: str, steps: Steps, output: str) -> list[Node]:
        """The nodes that compute the integers, as float32, that stand for numbers."""
        nodes, zero = list[Node](), steps.zero.astype(np.float32)
        quotient, whole = (self._fresh(f"{output}.{step}") for step in ("quotient", "whole"))
        for op, x, operand, y in (
            (Binary("div"), numbers, self._constant(output, steps.scale), quotient),
            (Unary("round"), quotient, "", whole),
            (Binary("add"), whole, self._constant(output, zero), output),
        ):
            nodes.append(Node(y, op, (x, operand) if operand else (x,), (y,)))
            self._tensors[y] = self._tensors[numbers]
        return nodes

    def _parameter(self, node: onnx.NodeProto, index: int) -> Array | None:
        name = node.input[index] if index < len(node.input) else ""
        if name and name not in self._constants:
            raise Unsupported("constant scales: quantise the model with calibration data (static)")
        return self._constants[name] if name else None

    def _quantise(self, node: onnx.NodeProto, scale: Array, zero: Array | None) -> Meaning:
        x = node.input[0]
        given = {a.name: a.i for a in node.attribute}
        kind = np.dtype(np.uint8)
        if zero is not None:
            kind = zero.dtype
        elif wanted := given.get("output_dtype", 0):
            kind = np.dtype(helper.tensor_dtype_to_np_dtype(wanted))
        if not is_whole(kind):
            raise Unsupported(f"integers in the place of {kind}")
        if x in self._constants:
            values = self._constants[x]
            if values.dtype.kind != "f":
                raise Unsupported("an input of floating-point numbers")
            steps = read_steps(node, values.shape, kind, scale, zero)
            return Meaning(steps.integers(values))
        if x not in self._tensors:
            raise Unsupported(f"the shape of its input {x!r}")
        if self._tensors[x].dtype != np.float32 or scale.dtype != np.float32 or x in self.stored:
            raise Unsupported("an input and a scale of float32")
        steps = read_steps(node, self._tensors[x].shape, kind, scale, zero)
        y = node.output[0]
        if grid := steps.grid():
            self.stored[y], self.grids[y] = Stored(steps, kind), grid
            return Meaning()
        if steps.block:
            raise Unsupported("one scale for a channel")
        if steps.axis is not None and kind.itemsize == 1 and len(set(steps.zero.tolist())) == 1:
            # In units of the scales there is one grid for all channels.
            units = steps.wide(self._tensors[x].shape)[0]
            one, zero = np.ones((), np.float32), np.asarray(steps.zero[0])
            return Meaning(nodes=self._chain(node, ("Div", units), (node.op_type, one, zero)))
        why = f"it has {kind}" if steps.axis is None else "its channels have other zero points"
        self.notes.append(f"node {label(node)} rounds in float32: {why}")
        self.stored[y] = Stored(steps, kind, raw=True)
        return Meaning(nodes=self._written_out(node, steps))

    def _written_out(self, node: onnx.NodeProto, steps: Steps) -> list[onnx.NodeProto]:
        """Divide, round, shift and clip: the integers of several scales, or of other types."""
        scale, zero = steps.wide(self._tensors[node.input[0]].shape)
        low, high = (np.array(limit, np.float32) for limit in steps.range)
        return self._chain(
            node,
            ("Div", scale),
            ("Round",),
            ("Add", zero.astype(np.float32)),
            ("Clip", low, high),
        )

    def _dequantise(self, node: onnx.NodeProto, scale: Array, zero: Array | None) -> Meaning:
        x, y = node.input[0], node.output[0]
        if x in self._constants:
            values = self._constants[x]
            if not is_whole(values.dtype):
                raise Unsupported("integers")
            steps = read_steps(node, values.shape, values.dtype, scale, zero)
            self.weights.add(y, steps)
            return Meaning(steps.numbers(values))
        if x not in self.stored and x in self._tensors and scale.dtype == np.float32:
            return self._of_integers(node, scale, zero)
        if x not in self.stored or x not in self._tensors or scale.dtype != np.float32:
            raise Unsupported("an input that QuantizeLinear computes, and a scale of float32")
        stored, shape = self.stored[x], self._tensors[x].shape
        steps = read_steps(node, shape, stored.dtype, scale, zero)
        if steps.block:
            raise Unsupported("one scale for a channel")
        if steps == stored.steps and not stored.raw:
            return Meaning()
        if grid := steps.grid():
            self.grids[y] = grid  # the numbers lie on it: rounding changes none
        scale, zero = steps.wide(shape)
        if stored.steps and not stored.raw:  # integers of other steps
            before = stored.steps
            if (zero == before.zero).all():
                return Meaning(nodes=self._chain(node, ("Mul", scale / before.scale)))
            shift = before.zero.astype(np.float32)
            back: list[_Step] = [("Div", before.scale), ("Round",), ("Add", shift)]
        else:
            back = []
        start = zero.astype(np.float32)
        return Meaning(nodes=self._chain(node, *back, ("Sub", start), ("Mul", scale)))

    def _of_integers(self, node: onnx.NodeProto, scale: Array, zero: Array | None) -> Meaning:
        """The numbers of integers that something else computes, as rows of a quantised table."""
        tensor = self._tensors[node.input[0]]
        if not is_whole(tensor.dtype):
            raise Unsupported("integers")
        steps = read_steps(node, tensor.shape, tensor.dtype, scale, zero)
        if steps.block:
            raise Unsupported("one scale for a channel")
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[0] = self._fresh(f"{node.output[0]}.float")
        cast = helper.make_node("Cast", node.input[:1], copy.input[:1], to=onnx.TensorProto.FLOAT)
        scale, zero = steps.wide(tensor.shape)
        start = zero.astype(np.float32)
        return Meaning(nodes=[cast, *self._chain(copy, ("Sub", start), ("Mul", scale))])

    def _chain(self, node: onnx.NodeProto, *steps: _Step) -> list[onnx.NodeProto]:
        """Nodes that apply operators, with constants as further operands, to the node's input."""
        x, made = node.input[0], list[onnx.NodeProto]()
        for index, step in enumerate(steps):
            operator, operands = step[0], step[1:]
            last = index == len(steps) - 1
            y = node.output[0] if last else self._fresh(f"{node.output[0]}.{index}")
            inputs = [x, *(self._constant(y, np.asarray(a)) for a in operands)]
            name = f"{node.name or node.output[0]}/{operator}"
            made.append(helper.make_node(operator, inputs, [y], name))
            self._written.add(y)
            x = y
        return made

    def _number(self, node: onnx.NodeProto, index: int, stored: Stored) -> str:
        """An operand of integers as numbers; an absent one is 0 for a Pad, else it stays absent."""
        name = node.input[index]
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        if not name and (node.op_type != "Pad" or mode != b"constant"):
            return ""
        if name and name not in self._constants:
            raise Unsupported("constant limits and padding")
        values = self._constants[name] if name else np.zeros((), stored.dtype)
        steps = None if stored.raw else stored.steps
        found = steps.numbers(values) if steps else values
        return self._constant(node.output[0], found.astype(np.float32))


def _is_choice(node: onnx.NodeProto) -> bool:
    """Whether a node of `_MOVES` never calculates a new value."""
    modes = [a.s for a in node.attribute if a.name == "mode"]
    if node.op_type in ("Resize", "Upsample"):
        return modes in ([], [b"nearest"])
    return node.op_type != "MaxPool" or len([y for y in node.output if y]) == 1
