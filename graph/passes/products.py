"""Passes that turn matrix products into convolutions, and convolutions into dense layers.

A product along the last axis becomes a convolution between two transposes, and convolutions can
be tuned. The transposes cost nothing in NHWC, where both of their tensors are the same memory.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fastrun.graph.core.model import Graph, Node, Shape, Tensor
from fastrun.graph.core.ops import Binary, Clip, Conv, Gemm, MatMul, Op, Reshape, Transpose, Unary
from fastrun.graph.core.shapes import CHANNELS_FIRST, CHANNELS_LAST
from fastrun.graph.passes.edit import Edit


def convolve_products(graph: Graph) -> Graph:
    """Write products of a (n, ..., k) tensor and constants (k, m) as 1x1 convolutions."""
    edit = Edit(graph)
    for node in edit:
        x, weights, bias = (node.input(i) for i in range(3))
        shape, matrix = edit.shape(x) or (), edit.constants.get(weights)
        if not isinstance(node.op, MatMul) or matrix is None or x in edit.constants:
            continue
        if (
            len(shape) not in CHANNELS_LAST
            or matrix.ndim != 2
            or (bias and bias not in edit.constants)
        ):
            continue
        space = (1,) * (len(shape) - 2)
        kernel = matrix.T.reshape(*matrix.T.shape, *space)
        inputs = [edit.constant(f"{node.name}.weights", kernel, edit.grids.get(weights))]
        if bias:
            inputs.append(edit.constant(f"{node.name}.bias", edit.constants[bias].reshape(-1)))
        op = Conv(space, (0,) * 2 * len(space), space, activation=node.op.activation)
        x = _put(
            edit,
            node,
            Transpose(CHANNELS_FIRST[len(shape)]),
            (x,),
            (shape[0], shape[-1], *shape[1:-1]),
        )
        out = (shape[0], matrix.shape[1], *shape[1:-1])
        product = _put(edit, node, op, (x, *inputs), out)
        back = Transpose(CHANNELS_LAST[len(shape)])
        edit.replace(node, replace(node, op=back, inputs=(product,)))
    return edit.done()


def sink_transposes(graph: Graph) -> Graph:
    """Move transposes that bring channels last behind arithmetic on single values.

    Transposes may then cancel each other, and scales may fold into weights.
    """
    edit = Edit(graph)
    for node in edit:
        if not isinstance(node.op, Unary | Clip | Binary):
            continue
        computed = [x for x in node.inputs if x not in edit.constants]
        moves = [edit.private_producer(x) for x in computed]
        orders = {move.op.order for move in moves if move and isinstance(move.op, Transpose)}
        if len(orders) != 1 or not all(m and isinstance(m.op, Transpose) for m in moves):
            continue
        order, shape = orders.pop(), edit.tensor(node.output).shape
        if order != CHANNELS_LAST.get(len(order)):
            continue
        if any(edit.shape(x) != shape for x in computed):
            continue
        back = tuple(int(axis) for axis in np.argsort(order))
        inputs = {x: move.inputs[0] for x, move in zip(computed, moves, strict=True) if move}
        for x in set(node.inputs) - set(inputs):
            values = edit.constants[x]
            wide = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
            inputs[x] = edit.constant(x, wide.transpose(back))
        before = tuple(shape[axis] for axis in back)
        inner = _put(edit, node, node.op, tuple(inputs[x] for x in node.inputs), before)
        after = replace(node, op=Transpose(order), inputs=(inner,))
        for move in moves:
            assert move
            edit.merge(move, edit.producer(node.output) or node, after)
    return edit.done()


def densify(graph: Graph) -> Graph:
    """Write convolutions with one output pixel as dense layers.

    Their time is spent reading weights, which a dense layer reads in several streams.
    """
    edit = Edit(graph)
    for node in edit:
        shape = edit.shape(node.input(0)) or ()
        if not isinstance(node.op, Conv) or node.op.groups > 1 or node.input(3):
            continue
        weights = edit.constants.get(node.inputs[1])
        if weights is None or weights.shape[1:] != shape[1:] or any(node.op.padding):
            continue
        grid = edit.grids.get(node.inputs[1])
        if grid and not grid.block and edit.exact(node.input(0)):
            continue  # dense layers have no integers
        rows = shape[0], math.prod(shape[1:])
        matrix = edit.constant(f"{node.name}.matrix", weights.reshape(len(weights), -1), grid)
        flat = _put(edit, node, Reshape(), node.inputs[:1], rows)
        op = Gemm(transpose_b=True, activation=node.op.activation)
        product = _put(edit, node, op, (flat, matrix, *node.inputs[2:]), (shape[0], len(weights)))
        edit.replace(node, replace(node, op=Reshape(), inputs=(product,)))
    return edit.done()


def convolve_dense(graph: Graph) -> Graph:
    """Write dense layers of quantised tensors as 1x1 convolutions, which compute with integers."""
    edit = Edit(graph)
    for node in edit:
        op, (x, bias) = node.op, (node.input(0), node.input(2))
        matrix = edit.constants.get(node.input(1))
        plain = isinstance(op, Gemm) and not op.transpose_a and op.alpha == op.beta == 1
        if not plain or matrix is None or (bias and bias not in edit.constants):
            continue
        assert isinstance(op, Gemm)
        grid = edit.grids.get(node.inputs[1])
        rows, outputs = edit.tensor(node.output).shape
        if not grid or grid.block or x not in edit.grids:
            continue
        if bias and edit.constants[bias].size != outputs:
            continue
        filters = matrix if op.transpose_b else matrix.T
        inputs = [edit.constant(f"{node.name}.filters", filters[..., None, None], grid)]
        if bias:
            inputs.append(edit.constant(f"{node.name}.bias", edit.constants[bias].reshape(-1)))
        pixel = _put(edit, node, Reshape(), (x,), (rows, filters.shape[1], 1, 1))
        conv = Conv((1, 1), (0,) * 4, (1, 1), activation=op.activation)
        product = _put(edit, node, conv, (pixel, *inputs), (rows, outputs, 1, 1))
        edit.replace(node, replace(node, op=Reshape(), inputs=(product,)))
        for old, new in ((x, pixel), (node.output, product)):
            if old in edit.grids:
                edit.grids[new] = edit.grids[old]
    return edit.done()


def _put(edit: Edit, node: Node, op: Op, inputs: tuple[str, ...], shape: Shape) -> str:
    """Add a node in front of `node`. Returns the name of its result."""
    name = edit.fresh(f"{node.output}.{type(op).__name__.lower()}")
    edit.insert(Node(f"{node.name}.{type(op).__name__.lower()}", op, inputs, (name,)),
                Tensor(shape, edit.tensor(node.output).dtype), node)  # fmt: skip
    return name
