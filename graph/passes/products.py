"""Passes that turn matrix products into convolutions, and convolutions into dense layers.

A product along the last axis becomes a convolution between two transposes, and convolutions can
be tuned. The transposes cost nothing in NHWC, where both of their tensors are the same memory.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fastrun.graph.core.model import Graph, Node, Shape
from fastrun.graph.core.ops import Binary, Clip, Conv, Gemm, MatMul, Reshape, Transpose, Unary
from fastrun.graph.core.shapes import CHANNELS_FIRST, CHANNELS_LAST
from fastrun.graph.passes.edit import Edit

# Rows from which a dense layer is a convolution: its kernel for a few reads weights every six rows.
MANY_ROWS = 16


def separate_rows(graph: Graph) -> Graph:
    """Write products of many rows (m, k) or (m, 1, k) and constants as those of (1, m, k)."""
    edit = Edit(graph)
    for node in edit:
        if _single_rows(edit, node):
            count, _, k = edit.shape(node.inputs[0]) or (0, 0, 0)
            x = edit.put(node, Reshape(), node.inputs[:1], (1, count, k))
            size = (1, count, edit.tensor(node.output).shape[-1])
            product = edit.put(node, node.op, (x, *node.inputs[1:]), size)
            edit.replace(node, replace(node, op=Reshape(), inputs=(product,)))
            continue
        op, shape = node.op, edit.shape(node.inputs[0]) or () if node.inputs else ()
        plain = isinstance(op, Gemm) and not op.transpose_a and op.alpha == op.beta == 1
        matrix, bias = edit.constants.get(node.input(1)), edit.constants.get(node.input(2))
        if not plain or len(shape) != 2 or shape[0] < MANY_ROWS or matrix is None:
            continue
        assert isinstance(op, Gemm)
        grid, outputs = edit.grids.get(node.inputs[1]), edit.tensor(node.output).shape[1]
        if grid or (node.input(2) and (bias is None or bias.size != outputs)):
            continue  # grids belong to the matrix as it is stored
        weights = edit.constant(node.inputs[1], matrix.T) if op.transpose_b else node.inputs[1]
        rows = edit.put(node, Reshape(), node.inputs[:1], (1, *shape))
        inputs = (rows, weights, *node.inputs[2:])
        product = edit.put(node, MatMul(op.activation), inputs, (1, shape[0], outputs))
        edit.replace(node, replace(node, op=Reshape(), inputs=(product,)))
    return edit.done()


def _single_rows(edit: Edit, node: Node) -> bool:
    """Whether a node multiplies (m, 1, k) by constants, as `nn.MultiheadAttention` does."""
    if not isinstance(node.op, MatMul):
        return False
    x, weights, bias = (node.input(i) for i in range(3))
    shape, matrix = edit.shape(x) or (), edit.constants.get(weights)
    if x in edit.constants or len(shape) != 3 or shape[1] != 1 or shape[0] < MANY_ROWS:
        return False
    flat = not bias or (bias in edit.constants and edit.constants[bias].ndim < 2)
    return matrix is not None and matrix.ndim == 2 and flat


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
            or _stays_packed(edit, node)
        ):
            continue
        space = (1,) * (len(shape) - 2)
        kernel = matrix.T.reshape(*matrix.T.shape, *space)
        inputs = [edit.constant(f"{node.name}.weights", kernel, edit.grids.get(weights))]
        if bias:
            inputs.append(edit.constant(f"{node.name}.bias", edit.constants[bias].reshape(-1)))
        op = Conv(space, (0,) * 2 * len(space), space, activation=node.op.activation)
        x = edit.put(
            node,
            Transpose(CHANNELS_FIRST[len(shape)]),
            (x,),
            (shape[0], shape[-1], *shape[1:-1]),
        )
        out = (shape[0], matrix.shape[1], *shape[1:-1])
        product = edit.put(node, op, (x, *inputs), out)
        back = Transpose(CHANNELS_LAST[len(shape)])
        edit.replace(node, replace(node, op=back, inputs=(product,)))
    return edit.done()


def _stays_packed(edit: Edit, node: Node) -> bool:
    """Whether a product is to read weights in blocks, of which convolutions know nothing."""
    grid, shape = edit.grids.get(node.inputs[1]), edit.shape(node.inputs[0]) or ()
    few = math.prod(shape[:-1]) < MANY_ROWS
    return bool(grid and grid.block and (grid.rounds or few))


def sink_transposes(graph: Graph) -> Graph:
    """Move transposes that bring channels last behind arithmetic on single values.

    Transposes may then cancel each other, scales may fold into weights, and a residual may be added
    by the convolution in front. Where another operand is no transpose, one that brings channels
    first is put in front of it: in NHWC neither of the two moves anything.
    """
    edit = Edit(graph)
    for node in edit:
        if not isinstance(node.op, Unary | Clip | Binary):
            continue
        computed = [x for x in node.inputs if x not in edit.constants]
        shape = edit.tensor(node.output).shape
        order = CHANNELS_LAST.get(len(shape))
        if order is None or not any(_turned(edit, x) == order for x in computed):
            continue
        if any(edit.shape(x) != shape for x in computed):
            continue
        back = tuple(int(axis) for axis in np.argsort(order))
        before = tuple(shape[axis] for axis in back)
        inputs = {}
        for x in dict.fromkeys(node.inputs):
            if x in edit.constants:
                values = edit.constants[x]
                wide = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
                inputs[x] = edit.constant(x, wide.transpose(back))
            else:
                inputs[x] = edit.put(node, Transpose(back), (x,), before)
        inner = edit.put(node, node.op, tuple(inputs[x] for x in node.inputs), before)
        edit.replace(node, replace(node, op=Transpose(order), inputs=(inner,)))
    return edit.done()


def _turned(edit: Edit, name: str) -> Shape:
    """The order of a transpose that only one node reads; () for any other value."""
    node = edit.private_producer(name)
    return node.op.order if node and isinstance(node.op, Transpose) else ()


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
        flat = edit.put(node, Reshape(), node.inputs[:1], rows)
        op = Gemm(transpose_b=True, activation=node.op.activation)
        product = edit.put(node, op, (flat, matrix, *node.inputs[2:]), (shape[0], len(weights)))
        edit.replace(node, replace(node, op=Reshape(), inputs=(product,)))
    return edit.done()


def convolve_dense(graph: Graph) -> Graph:
    """Write dense layers of quantised tensors as 1x1 convolutions, which compute with integers.

    Many rows are the pixels of one image, since a register tile has pixels of one image only.
    """
    edit = Edit(graph)
    for node in edit:
        op, (x, bias) = node.op, (node.input(0), node.input(2))
        matrix = edit.constants.get(node.input(1))
        if not isinstance(op, Gemm | MatMul) or matrix is None or matrix.ndim != 2:
            continue
        if len(edit.shape(x) or ()) != 2 or (bias and bias not in edit.constants):
            continue
        transposed = isinstance(op, Gemm) and op.transpose_b
        if isinstance(op, Gemm) and (op.transpose_a or (op.alpha, op.beta) != (1, 1)):
            continue
        grid = edit.grids.get(node.inputs[1])
        rows, outputs = edit.tensor(node.output).shape
        if not grid or grid.block or x not in edit.grids:
            continue
        if bias and edit.constants[bias].size != outputs:
            continue
        filters = matrix if transposed else matrix.T
        inputs = [edit.constant(f"{node.name}.filters", filters[..., None, None], grid)]
        if bias:
            inputs.append(edit.constant(f"{node.name}.bias", edit.constants[bias].reshape(-1)))
        images, pixels = (1, rows) if rows >= MANY_ROWS else (rows, 1)
        inner = filters.shape[1]
        apart = edit.put(node, Reshape(), (x,), (images, 1, pixels, inner))
        order = Transpose(CHANNELS_FIRST[4])
        pixel = edit.put(node, order, (apart,), (images, inner, 1, pixels))
        conv = Conv((1, 1), (0,) * 4, (1, 1), activation=op.activation)
        product = edit.put(node, conv, (pixel, *inputs), (images, outputs, 1, pixels))
        order = Transpose(CHANNELS_LAST[4])
        back = edit.put(node, order, (product,), (images, 1, pixels, outputs))
        edit.replace(node, replace(node, op=Reshape(), inputs=(back,)))
        for old, new in ((x, (apart, pixel)), (node.output, (product, back))):
            if old in edit.grids:
                edit.grids |= dict.fromkeys(new, edit.grids[old])
    return edit.done()
