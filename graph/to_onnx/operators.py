"""Writes each operator of ours as ONNX nodes of opset 19."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Node, Shape
from fastrun.graph.core.ops import (
    LRN,
    Activating,
    Affine,
    Attention,
    BatchNorm,
    Binary,
    ByteFunction,
    Cast,
    ChannelShuffle,
    Clip,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    DepthwiseVolume,
    Expand,
    Gemm,
    GridSample,
    GroupNorm,
    Identity,
    LayerNorm,
    MatMul,
    Numpy,
    Onnx,
    Pad,
    Pool,
    Recurrent,
    Reduce,
    Reshape,
    Resize,
    Rotary,
    Slice,
    Softmax,
    Transpose,
    Unary,
    operand,
)
from fastrun.graph.core.shapes import interleaved
from fastrun.graph.frontend.inline import renamed
from fastrun.graph.to_onnx.nodes import Nodes
from fastrun.graph.to_onnx.numbers import write_numbers
from fastrun.graph.to_onnx.recurrent import recurrent
from fastrun.kernels.core.problem import slope

OPSET = 19

# ONNX's operators of one value that have another name than ours with a capital.
_NAMES = {"leakyrelu": "LeakyRelu", "hardsigmoid": "HardSigmoid", "hardswish": "HardSwish"}
_WITH_ALPHA = ("leakyrelu", "hardsigmoid", "elu", "celu", "selu")
_INT64_MIN = np.iinfo(np.int64).min


def write(to: Nodes, node: Node, inputs: Sequence[str], output: str) -> None:
    """Write a node that reads the values `inputs`, "" for an absent one, and computes `output`."""
    op = node.op
    if isinstance(op, Numpy) and isinstance(op.op, Onnx):
        _as_it_was(to, node, op.op, inputs, [output, *node.outputs[1:]])
    elif isinstance(op, Numpy):
        write(to, replace(node, op=op.op), inputs, output)
    elif isinstance(op, Activating) and op.activation:
        linear = to.fresh(f"{node.output}.linear")
        _write(to, node, inputs, linear)
        _activate(to, f"{node.name}.{op.activation}", op.activation, linear, output)
    else:
        _write(to, node, inputs, output)


def _write(to: Nodes, node: Node, inputs: Sequence[str], output: str) -> None:
    op, name, shape = node.op, node.name, to.graph.shape(node.output)
    if write_numbers(to, node, inputs, output):
        return
    x = inputs[0]
    match op:
        case Conv() | DepthwiseVolume() | ConvTranspose():
            _convolution(to, node, inputs, output)
        case Pool():
            _pool(to, node, x, output)
        case BatchNorm(epsilon=epsilon):
            to.put(name, "BatchNormalization", *inputs, output=output, epsilon=epsilon)
        case Affine():
            wide = (len(to.graph.shape(node.output)) - 2) * (1,)
            for kind, parameter in (("Mul", inputs[1]), ("Add", inputs[2])):
                values = to.graph.constants[parameter]
                factor = to.constant(f"{parameter}.wide", values.reshape(-1, *wide))
                x = to.put(name, kind, x, factor, output=output if kind == "Add" else "")
        case Attention():
            _attention(to, node, op, inputs, output)
        case Rotary():
            _rotary(to, node, op, inputs, output)
        case Recurrent():
            recurrent(to, node, op, inputs, output)
        case LayerNorm(epsilon=epsilon):
            rank = len(shape)
            last, first = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
            rows = to.put(name, "Transpose", x, perm=last)
            constants = ((x, to.graph.constants[x].reshape(-1)) for x in filter(None, inputs[1:]))
            flat = [to.constant(x, values) for x, values in constants]
            normal = to.put(name, "LayerNormalization", rows, *flat, axis=-1, epsilon=epsilon)
            to.put(name, "Transpose", normal, output=output, perm=first)
        case GroupNorm(groups, epsilon):
            _group_norm(to, node, (groups, epsilon), inputs, output)
        case LRN(size, alpha, beta, bias):
            kept = {"size": size, "alpha": alpha, "beta": beta, "bias": bias}
            to.put(name, "LRN", x, output=output, **kept)
        case Unary():
            _unary(to, name, op, x, output)
        case ByteFunction():
            _linked(to, node, op, x, output)
        case Clip(low, high):
            limits = ["" if math.isinf(v) else to.number(name, v) for v in (low, high)]
            to.put(name, "Clip", x, *limits, output=output)
        case Binary(function=function):
            kind = "PRelu" if function == "prelu" else function.capitalize()
            to.put(name, kind, *inputs, output=output)
        case Softmax(axis, log):
            to.put(name, "LogSoftmax" if log else "Softmax", x, output=output, axis=axis)
        case Gemm(alpha, beta, a, b):
            kept = {"alpha": alpha, "beta": beta, "transA": int(a), "transB": int(b)}
            to.put(name, "Gemm", *inputs, output=output, **kept)
        case MatMul():
            added = len(inputs) > 2 and inputs[2]
            product = to.put(name, "MatMul", *inputs[:2], output="" if added else output)
            if added:
                to.put(f"{name}.bias", "Add", product, inputs[2], output=output)
        case Reduce(function, axes):
            given = to.constant(f"{name}.axes", np.array(axes, np.int64))
            kind = "ReduceL2" if function == "l2" else f"Reduce{function.capitalize()}"
            keep = int(len(shape) == len(to.graph.shape(node.inputs[0])))
            to.put(name, kind, x, given, output=output, keepdims=keep, noop_with_empty_axes=1)
        case GridSample(mode, padding, corners):
            mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)  # until opset 20
            how = {"mode": mode, "padding_mode": padding, "align_corners": int(corners)}
            to.put(name, "GridSample", *inputs, output=output, **how)
        case Concat(axis):
            to.put(name, "Concat", *inputs, output=output, axis=axis)
        case Slice():
            _slice(to, name, op, x, output)
        case Pad(padding, mode, value):
            amounts = to.constant(f"{name}.pads", np.array(padding, np.int64))
            dtype = to.graph.tensor(node.output).dtype
            filler = to.constant(f"{name}.value", np.array(value, dtype))
            to.put(name, "Pad", x, amounts, filler, output=output, mode=mode)
        case Transpose(order):
            to.put(name, "Transpose", x, output=output, perm=order)
        case ChannelShuffle(groups):
            n, c, *space = shape
            split = _reshape(to, name, x, (n, groups, c // groups, *space))
            perm = (0, 2, 1, *range(3, len(space) + 3))
            _reshape(to, name, to.put(name, "Transpose", split, perm=perm), shape, output)
        case DepthToSpace():
            _depth_to_space(to, node, op, x, output)
        case Reshape():
            _reshape(to, name, x, shape, output)
        case Expand():
            to.put(name, "Expand", x, _sizes(to, name, shape), output=output)
        case Resize():
            _resize(to, node, op, x, output)
        case Cast():
            target = helper.np_dtype_to_tensor_dtype(to.graph.tensor(node.output).dtype)
            to.put(name, "Cast", x, output=output, to=target)
        case Identity():
            to.put(name, "Identity", x, output=output)
        case _:
            raise AssertionError(f"{node.label} is refused before")


def _depth_to_space(to: Nodes, node: Node, op: DepthToSpace, x: str, output: str) -> None:
    shape, (n, _, *space) = to.graph.shape(node.output), to.graph.shape(node.inputs[0])
    split = _reshape(to, node.name, x, (n, *op.size, shape[1], *space))
    turned = to.put(node.name, "Transpose", split, perm=interleaved(len(op.size)))
    if not any(op.crop):
        _reshape(to, node.name, turned, shape, output)
        return
    whole = tuple(a * b for a, b in zip(space, op.size, strict=True))
    wide = _reshape(to, node.name, turned, (*shape[:2], *whole))
    kept = Slice((0, 0, *op.crop), shape, (1,) * len(shape))
    _slice(to, node.name, kept, wide, output)


def _convolution(to: Nodes, node: Node, inputs: Sequence[str], output: str) -> None:
    """A convolution, transposed or not, and the sum with its residual."""
    op = node.op
    assert isinstance(op, Conv | DepthwiseVolume | ConvTranspose)
    weights = to.graph.shape(node.inputs[1])
    add = inputs[3] if len(inputs) > 3 else ""
    begins, ends = op.padding[: len(op.stride)], op.padding[len(op.stride) :]
    extra = None
    if isinstance(op, ConvTranspose) and min(ends) < 0:
        extra, ends = [max(-end, 0) for end in ends], tuple(max(end, 0) for end in ends)
    result = to.put(
        node.name,
        "ConvTranspose" if isinstance(op, ConvTranspose) else "Conv",
        *(inputs[:3] if len(inputs) > 2 and inputs[2] else inputs[:2]),
        output="" if add else output,
        kernel_shape=weights[2:],
        strides=op.stride,
        pads=(*begins, *ends),
        dilations=op.dilation,
        group=weights[0] if isinstance(op, DepthwiseVolume) else op.groups,
        output_padding=extra,
    )
    if add:
        to.put(f"{node.name}.add", "Add", result, add, output=output)


def _pool(to: Nodes, node: Node, x: str, output: str) -> None:
    op = node.op
    assert isinstance(op, Pool)
    space = to.graph.shape(node.inputs[0])[2:]
    kind = "MaxPool" if op.function == "max" else "AveragePool"
    if op.kernel == space and not any(op.padding) and set(op.dilation) == {1}:
        to.put(node.name, f"Global{kind}", x, output=output)
        return
    to.put(
        node.name,
        kind,
        x,
        output=output,
        kernel_shape=op.kernel,
        strides=op.stride,
        pads=op.padding,
        # onnxruntime's integer average pool knows no dilation, not even of 1.
        dilations=op.dilation if max(op.dilation) > 1 else None,
        ceil_mode=int(op.ceil),
        count_include_pad=None if op.function == "max" else int(op.count_padding),
    )


def _slice(to: Nodes, name: str, op: Slice, x: str, output: str) -> None:
    ranges = []
    for start, size, step in zip(op.starts, op.sizes, op.steps, strict=True):
        end = start + size * step
        # An end below 0 would count from the end; an empty range may begin anywhere.
        ranges.append((start, end if end >= 0 else _INT64_MIN, step) if size else (0, 0, 1))
    starts, ends, steps = zip(*ranges, strict=True)
    lists = {"starts": starts, "ends": ends, "axes": range(len(starts)), "steps": steps}
    given = [to.constant(f"{name}.{what}", np.array(v, np.int64)) for what, v in lists.items()]
    to.put(name, "Slice", x, *given, output=output)


def _unary(to: Nodes, name: str, op: Unary, x: str, output: str) -> None:
    """A function of one value; those that ONNX lacks are composed."""
    if op.function in ("relu6", "silu", "gelu", "gelu_tanh", "bipolar"):
        _composed(to, name, op.function, x, output)
        return
    if op.function == "pow":
        to.put(name, "Pow", x, to.number(name, op.alpha), output=output)
        return
    kept = {"alpha": op.alpha} if op.function in _WITH_ALPHA else {}
    if op.function == "hardsigmoid":
        kept["beta"] = op.beta
    if op.function == "selu":
        kept["gamma"] = op.beta
    kind = _NAMES.get(op.function, op.function.capitalize())
    to.put(name, kind, x, output=output, **kept)


def _linked(to: Nodes, node: Node, function: ByteFunction, x: str, output: str) -> None:
    """The links of a function of bytes, rounded between them as they are here."""
    values = [x]
    for i, link in enumerate(function.links):
        name, last = f"{node.name}.{i}", i == len(function.links) - 1
        given = [values[a] if isinstance(a, int) else to.number(name, a) for a in link.operands]
        value = output if last else to.fresh(f"{name}.value")
        write(to, Node(name, link.op, tuple(given), (node.output,)), given, value)
        if link.rounding:
            value = _rounded(to, name, value, link.rounding)
        values.append(value)


def _rounded(to: Nodes, name: str, value: str, rounding: tuple[float, int]) -> str:
    """The value quantised to bytes and dequantised."""
    scale = to.constant(f"{name}.scale", np.array(rounding[0], np.float32))
    zero = to.constant(f"{name}.zero", np.array(rounding[1], np.uint8))
    stored = to.put(f"{name}.quantise", "QuantizeLinear", value, scale, zero)
    return to.put(f"{name}.dequantise", "DequantizeLinear", stored, scale, zero)


def _activate(to: Nodes, name: str, activation: str, x: str, output: str) -> None:
    """The activation of a problem, as an operator of its own."""
    factor = slope(activation)
    if factor is not None:
        op = Unary("leakyrelu", factor)
    elif activation == "hardsigmoid":
        op = Unary("hardsigmoid", 1 / 6, 0.5)
    else:
        op = Unary(activation)
    _unary(to, name, op, x, output)


def _composed(to: Nodes, name: str, function: str, x: str, output: str) -> None:
    def binary(kind: str, a: str, b: str | float, output: str = "") -> str:
        return to.put(name, kind, a, b if isinstance(b, str) else to.number(name, b), output=output)

    match function:
        case "relu6":
            to.put(name, "Clip", x, to.number(name, 0), to.number(name, 6), output=output)
        case "silu":
            binary("Mul", x, to.put(name, "Sigmoid", x), output)
        case "bipolar":
            to.put(name, "Sign", binary("Add", to.put(name, "Sign", x), 0.5), output=output)
        case "gelu":
            gate = binary("Add", to.put(name, "Erf", binary("Div", x, math.sqrt(2))), 1)
            binary("Mul", binary("Mul", x, gate), 0.5, output)
        case _:
            cube = binary("Mul", binary("Mul", x, x), x)
            inner = binary("Add", x, binary("Mul", cube, 0.044715))
            gate = to.put(name, "Tanh", binary("Mul", inner, math.sqrt(2 / math.pi)))
            binary("Mul", binary("Mul", x, binary("Add", gate, 1)), 0.5, output)


def _resize(to: Nodes, node: Node, op: Resize, x: str, output: str) -> None:
    """By scales, or by sizes where the scales do not give the sizes."""
    before, after = to.graph.shape(node.inputs[0]), to.graph.shape(node.output)
    scales = np.array(op.scales, np.float32)
    by_scale = tuple(int(np.float32(n) * s) for n, s in zip(before, scales, strict=True)) == after
    last = (
        (to.constant(f"{node.name}.scales", scales),)
        if by_scale
        else ("", _sizes(to, node.name, after))
    )
    to.put(
        node.name,
        "Resize",
        *(x, "", *last),
        output=output,
        mode=op.mode,
        coordinate_transformation_mode=op.coordinates,
        nearest_mode=op.rounding if op.mode == "nearest" else None,
    )


def _reshape(to: Nodes, name: str, x: str, shape: Shape, output: str = "") -> str:
    return to.put(name, "Reshape", x, _sizes(to, name, shape), output=output)


def _sizes(to: Nodes, name: str, shape: Shape) -> str:
    return to.constant(f"{name}.shape", np.array(shape, np.int64))


def _as_it_was(
    to: Nodes, node: Node, op: Onnx, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Write a node of ONNX again.

    Raises:
        UnsupportedError: its operator means something else in the opset that is written.
    """
    model = onnx.load_from_string(op.model)
    names = {operand(i): x for i, x in enumerate(inputs) if x}
    copy = renamed(model.graph.node[0], names, {})
    for opset in model.opset_import:
        if opset.domain == copy.domain and _since(copy, opset.version) != _since(copy, OPSET):
            raise UnsupportedError(
                f"node {node.label} of opset {opset.version} cannot be written in opset {OPSET}"
            )
    left = iter(outputs)
    # ONNX lets only optional outputs be absent, so those that nothing reads get names.
    for i, y in enumerate(copy.output):
        copy.output[i] = next(left) if y else to.fresh(f"{node.name}.unread")
    copy.name = node.name
    to.nodes.append(copy)


def _since(node: onnx.NodeProto, opset: int) -> int:
    """The opset in which a node's operator got the form that it has in `opset`; 0 for none."""
    try:
        return int(onnx.defs.get_schema(node.op_type, opset, node.domain).since_version)
    except onnx.defs.SchemaError:
        return 0


def _group_norm(
    to: Nodes, node: Node, op: tuple[int, float], inputs: Sequence[str], output: str
) -> None:
    """Instance normalisation of groups as channels, which every opset has; then scale and shift."""
    name, shape, (groups, epsilon) = node.name, to.graph.shape(node.output), op
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    grouped = np.array([shape[0], groups, -1])
    x = to.put(name, "Reshape", inputs[0], to.constant(f"{name}.grouped", grouped))
    parameters = to.constant(f"{name}.ones", ones), to.constant(f"{name}.zeros", zeros)
    x = to.put(name, "InstanceNormalization", x, *parameters, epsilon=epsilon)
    x = to.put(name, "Reshape", x, to.constant(f"{name}.shape", np.array(shape)))
    wide = (len(shape) - 2) * (1,)
    for kind, parameter in (("Mul", inputs[1]), ("Add", inputs[2])):
        values = to.graph.constants[parameter].reshape(-1, *wide)
        factor = to.constant(f"{parameter}.wide", values)
        x = to.put(name, kind, x, factor, output=output if kind == "Add" else "")


def _rotary(to: Nodes, node: Node, op: Rotary, inputs: Sequence[str], output: str) -> None:
    """The numbers of all heads and those of their pairs, gathered, with the factors of either."""
    name, shape, heads = node.name, to.graph.shape(node.output), np.arange(op.heads)[:, None]
    first, terms = heads * op.of.step + op.of.start, list[str]()
    for columns, factor in zip((range(op.of.size), op.pairs), inputs[1:], strict=True):
        channels = to.constant(f"{name}.channels", (first + np.array(columns)).reshape(-1))
        values = np.tile(to.graph.constants[factor].T, (op.heads, 1)).reshape(1, *shape[1:])
        picked = to.put(name, "Gather", inputs[0], channels, axis=1)
        terms.append(to.put(name, "Mul", picked, to.constant(f"{factor}.wide", values)))
    to.put(name, "Add", *terms, output=output)


def _attention(to: Nodes, node: Node, op: Attention, inputs: Sequence[str], output: str) -> None:
    """Products and a softmax of opset 19; the heads' channels are gathered."""
    name, shape = node.name, to.graph.shape(node.output)
    x, context, mask = (*inputs, "", "")[:3]
    parts = []
    for of, source in ((op.q, x), (op.k, context or x), (op.v, context or x)):
        before = to.graph.shape(node.inputs[int(bool(source != x))])
        pixels = math.prod(before[2:])
        channels = np.arange(op.heads)[:, None] * of.step + of.start + np.arange(of.size)
        given = to.constant(f"{name}.channels", channels.reshape(-1))
        picked = to.put(name, "Gather", source, given, axis=1)
        sizes = to.constant(f"{name}.heads", np.array((shape[0], op.heads, of.size, pixels)))
        parts.append(to.put(name, "Reshape", picked, sizes))
    q, k, v = parts
    scores = to.put(name, "MatMul", to.put(name, "Transpose", q, perm=(0, 1, 3, 2)), k)
    scores = to.put(name, "Mul", scores, to.number(name, op.scale))
    if mask and node.inputs[2] not in to.graph.constants:
        scores = to.put(name, "Add", scores, mask)
    elif mask:
        values = to.graph.constants[node.inputs[2]]
        tiled = np.tile(values, (shape[0] // len(values), 1, 1, 1))
        scores = to.put(name, "Add", scores, to.constant(f"{name}.mask", tiled))
    powers = to.put(name, "Softmax", scores, axis=-1)
    found = to.put(name, "MatMul", v, to.put(name, "Transpose", powers, perm=(0, 1, 3, 2)))
    whole = to.constant(f"{name}.shape", np.array(shape))
    to.put(name, "Reshape", found, whole, output=output)
