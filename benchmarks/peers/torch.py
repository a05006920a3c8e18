"""PyTorch: channels-last, oneDNN convolutions with packed weights and fused epilogues, frozen.

`torch.compile` with freezing replaces a convolution and its epilogue by these operators. As
TorchScript they run without Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from fastrun.benchmarks.peers import Array, LoadError, first_line
from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import (
    Activating,
    Binary,
    ChannelShuffle,
    Concat,
    Conv,
    DepthToSpace,
    Gemm,
    Identity,
    Pool,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    Transpose,
    Unary,
)
from fastrun.graph.core.shapes import interleaved
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise

title = "PyTorch"
packages = ("torch",)

# The name, scalars and algorithm of a fused activation.
_EPILOGUES = {
    "": '"none", [], ""',
    "relu": '"relu", [], ""',
    "relu6": '"hardtanh", torch.jit.annotate(List[Optional[number]], [0.0, 6.0]), ""',
    "hardswish": '"hardswish", [], ""',
    "sigmoid": '"sigmoid", [], ""',
    "hardsigmoid": '"hardsigmoid", [], ""',
    "silu": '"swish", [], ""',
    "gelu": '"gelu", [], "none"',
    "gelu_tanh": '"gelu", [], "tanh"',
}
_AFTER_ADD = {"": "None, [], None", "relu": '"relu", [], ""'}


def load(model: onnx.ModelProto, threads: int, inner: bool = False) -> Session:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    try:
        return Session(optimise(import_onnx(model)))
    except (GraphError, RuntimeError) as error:
        raise LoadError(first_line(error)) from None


class Session:
    """A frozen module. Its inputs are channels-last, like all tensors inside it."""

    def __init__(self, graph: Graph) -> None:
        self._inputs = graph.inputs
        self._module = Script(graph).module()

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        self._bound = [_channels_last(inputs[name]) for name in self._inputs]
        for _ in range(3):  # calls in which the executor specialises the module
            self.call()
        return [np.ascontiguousarray(y.numpy()) for y in self._module(*self._bound)]

    def call(self) -> None:
        self._module(*self._bound)


def _channels_last(array: Array) -> Any:
    import torch

    tensor = torch.from_numpy(array)
    return tensor.to(memory_format=torch.channels_last) if array.ndim == 4 else tensor


class Script:
    """A graph as the text of a TorchScript function, with a line for each node, and its weights.

    Raises:
        LoadError: an operator is missing in this file.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._names = {name: f"x{i}" for i, name in enumerate(graph.inputs)}
        self._weights: dict[str, Any] = {}
        arguments = ", ".join(["self", *self._names.values()])
        lines = [f"def forward({arguments}):"]
        for i, node in enumerate(graph.nodes):
            value = self._value(node)
            self._names[node.output] = f"y{i}"
            if isinstance(node.op, Activating) and not isinstance(node.op, Conv):
                activation = node.op.activation
                value = f"torch.nn.functional.{activation}({value})" if activation else value
            lines.append(f"    y{i} = {value}")
        results = "".join(f"{self._names[name]}, " for name in graph.outputs)
        self.text = "\n".join([*lines, f"    return ({results})", ""])

    def module(self) -> Any:
        """The function and its weights, frozen."""
        import torch

        # A new class for each module, because modules of one class share their methods.
        module = type("Network", (torch.nn.Module,), {})()
        for name, tensor in self._weights.items():
            module.register_buffer(name, tensor)
        with warnings.catch_warnings():
            # The successor of TorchScript uses the same operators but needs a C++ compiler.
            warnings.simplefilter("ignore", DeprecationWarning)
            script = torch.jit.script(module.eval())
            script.define(self.text)
            return torch.jit.freeze(script)

    def _value(self, node: Node) -> str:
        graph = self._graph
        if isinstance(node.op, Conv):
            return self._conv(node, node.op)
        if isinstance(node.op, Gemm):
            return self._gemm(node, node.op)
        if any(x in graph.constants for x in node.inputs):
            raise LoadError(f"node {node.label}: a constant operand is not supported here")
        xs = [self._names[x] for x in node.inputs]
        x, both = xs[0], ", ".join(xs)
        match node.op:
            case Pool():
                return _pool(node, node.op, x)
            case Unary(function="relu"):
                return f"torch.relu({x})"
            case Binary(function="add" | "mul" as function):
                return f"torch.{function}({both})"
            case Concat(axis=axis):
                return f"torch.cat([{both}], {axis})"
            case Slice(starts=starts, sizes=sizes, steps=steps):
                cuts = zip(starts, sizes, steps, graph.shape(node.inputs[0]), strict=True)
                return f"{x}[{', '.join(_cut(*cut) for cut in cuts)}]"
            case Transpose(order=order):
                return f"{x}.permute({list(order)})"
            case ChannelShuffle(groups=groups):
                return f"torch.channel_shuffle({x}, {groups})"
            case DepthToSpace(size=size):
                n, _, *space = graph.shape(node.inputs[0])
                shape = graph.shape(node.output)
                split = [n, *size, shape[1], *space]
                turned = f"{x}.reshape({split}).permute({list(interleaved(len(size)))})"
                return f"{turned}.reshape({list(shape)})"
            case Reshape():
                return f"{x}.reshape({list(graph.shape(node.output))})"
            case Reduce(function="mean", axes=axes):
                return f"{x}.mean({list(axes)}).reshape({list(graph.shape(node.output))})"
            case Softmax(axis=axis, log=False):
                return f"torch.softmax({x}, {axis})"
            case Identity():
                return x
        raise LoadError(f"node {node.label} is not supported here")

    def _constant(self, name: str) -> Any:
        import torch

        if name not in self._graph.constants:
            raise LoadError(f"{name!r} is computed: only constant weights are supported here")
        return torch.from_numpy(np.array(self._graph.constants[name]))

    def _keep(self, tensor: Any) -> str:
        name = f"weights{len(self._weights)}"
        self._weights[name] = tensor
        return f"self.{name}"

    def _conv(self, node: Node, op: Conv) -> str:
        import torch

        padding = _even_padding(node, op.padding)
        shape = self._graph.shape(node.inputs[0])
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            self._constant(node.inputs[1]).contiguous(memory_format=torch.channels_last),
            padding, op.stride, op.dilation, op.groups, shape,
        )  # fmt: skip
        bias = self._keep(self._constant(node.inputs[2])) if node.input(2) else "None"
        geometry = f"{padding}, {list(op.stride)}, {list(op.dilation)}, {op.groups}"
        x, weights = self._names[node.inputs[0]], self._keep(packed)
        function = "torch.ops.mkldnn._convolution_pointwise"
        if not node.input(3):
            return f"{function}({x}, {weights}, {bias}, {geometry}, {_EPILOGUES[op.activation]})"
        if op.activation not in _AFTER_ADD:
            raise LoadError(f"node {node.label}: {op.activation} after an addition does not fuse")
        onto, fused = self._names[node.inputs[3]], f'"add", 1.0, {_AFTER_ADD[op.activation]}'
        if self._is_last_reader(node, node.inputs[3]):
            return f"{function}_({onto}, {x}, {weights}, {bias}, {geometry}, {fused})"
        return f"{function}({x}, {onto}, {weights}, {bias}, {geometry}, {fused})"

    def _is_last_reader(self, node: Node, name: str) -> bool:
        """Whether the node may write its result over a value, because it is the last reader."""
        producer = self._graph.producers.get(name)
        readers = [other for other in self._graph.nodes if name in other.inputs]
        views = (Identity, Reshape, Transpose)
        return (
            producer is not None
            and name not in self._graph.outputs
            and readers[-1] is node
            and not any(isinstance(n.op, views) for n in (producer, *readers))
        )

    def _gemm(self, node: Node, op: Gemm) -> str:
        if op.transpose_a or (op.alpha, op.beta) != (1.0, 1.0):
            raise LoadError(f"node {node.label}: only plain dense layers are supported here")
        weights = self._constant(node.inputs[1])
        kept = self._keep(weights if op.transpose_b else weights.T.contiguous())
        bias = self._keep(self._constant(node.inputs[2])) if node.input(2) else "None"
        return f"torch.nn.functional.linear({self._names[node.inputs[0]]}, {kept}, {bias})"


def _cut(start: int, size: int, step: int, whole: int) -> str:
    """A slice of one axis."""
    return ":" if size == whole else f"{start}:{start + (size - 1) * step + 1}:{step}"


def _pool(node: Node, op: Pool, x: str) -> str:
    geometry = f"{x}, {list(op.kernel)}, {list(op.stride)}, {_even_padding(node, op.padding)}"
    if op.function == "max":
        return f"torch.max_pool2d({geometry}, {list(op.dilation)}, {op.ceil})"
    if op.dilation != (1, 1):
        raise LoadError(f"node {node.label}: an average over a dilated window is not supported")
    return f"torch._C._nn.avg_pool2d({geometry}, {op.ceil}, {op.count_padding})"


def _even_padding(node: Node, padding: tuple[int, ...]) -> list[int]:
    if len(padding) != 4 or padding[:2] != padding[2:]:
        raise LoadError(f"node {node.label}: only even padding in two dimensions is supported here")
    return list(padding[:2])
