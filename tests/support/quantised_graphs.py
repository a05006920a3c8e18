"""Quantised networks made of networks of float32: grids for all tensors, weights on grids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastrun.graph.core.grid import Grid, weight_axis
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.reference import interpreter as reference
from fastrun.kernels.core.dtype import S8, U8


def quantised(graph: Graph, exact: bool = True, skip: int = 0, bits: int = 8) -> Graph:
    """The optimised network with grids that fit its values on normal inputs.

    Of `skip` > 0, every so manieth tensor stays float32, and so do outputs.
    """
    every = replace(graph, outputs=tuple(node.output for node in graph.nodes))
    inputs = normal_inputs(graph)
    values = {**inputs, **reference.run(every, inputs)}
    grids, constants = dict[str, Grid](), dict(graph.constants)
    for i, (name, value) in enumerate(values.items()):
        if name not in graph.outputs and (not skip or i % skip):
            grids[name] = replace(activation_grid(value), exact=exact)
    for node in graph.nodes:
        name, axis = node.input(1), weight_axis(node.op)
        if name in constants and axis is not None and name not in grids:
            weights = np.moveaxis(constants[name], axis, 0).reshape(constants[name].shape[axis], -1)
            top = 2 ** (bits - 1) - (bits == 8)
            scale = (np.maximum(np.abs(weights).max(axis=1), 1e-3) / top).astype(np.float32)
            grid = Grid(scale, 0, S8, exact)
            constants[name] = grid.rounded(constants[name], axis).astype(np.float32)
            grids[name] = grid
    return replace(graph, grids=grids, constants=constants)


def activation_grid(values: Array) -> Grid:
    """The grid from the least to the largest value, zero included."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = max(high - low, 1e-3) / 255
    return Grid(scale, round(-low / scale), U8)


def normal_inputs(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Normal values for every input."""
    draw = np.random.default_rng(seed)
    return {x: draw.standard_normal(graph.shape(x), np.float32) for x in graph.inputs}
