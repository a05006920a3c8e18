"""Ranges that are chosen by what rounding tensors does to a network's outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Graph
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.quantise.effects import Effects, loss
from fastrun.graph.quantise.network import quantise
from fastrun.graph.quantise.simulate import differences
from fastrun.graph.reference.interpreter import run
from fastrun.kernels.core.dtype import U8
from tests.support.graph_models import model, node, normal


def test_values_that_do_not_matter_are_cut_off() -> None:
    """One channel has values eight times as large as the others, and hardly any weight."""
    first, second = normal(16, 4, 1, 1), normal(8, 16, 1, 1)
    first[0] *= 8
    second[:, 0] *= 1e-3
    nodes = [node("Conv", "x w", "a"), node("Softplus", "a", "b"), node("Conv", "b v", "y")]
    g = optimise(import_onnx(model(nodes, {"w": first, "v": second})))
    data = [[{"x": normal(1, 4, 8, 8, seed=100 * i + k)} for k in range(16)] for i in range(2)]
    sqnr = {
        ranges: differences(g, quantise(g, data[0], ranges=ranges), data[1])["y"].sqnr
        for ranges in ("mse", "outputs")
    }
    assert sqnr["outputs"] > sqnr["mse"] + 3


def branched() -> Graph:
    """Two layers and a concatenation, whose parts share a grid, and a softmax at the end."""
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "a v", "b"),
        node("Concat", "a b", "c", axis=1),
        node("Conv", "c u", "d"),
        node("Softmax", "d", "y", axis=1),
    ]
    weights = {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1), "u": 9 * normal(5, 8, 1, 1)}
    return optimise(import_onnx(model(nodes, weights)))


def test_the_loss_is_that_of_what_a_softmax_reads() -> None:
    g, grid = branched(), Grid(0.1, 128, U8)
    names = [x for x in g.producers if g.shape(x)[1] in (4, 8)]
    assert len(names) == 3
    advised = replace(g, grids=dict.fromkeys(names, replace(grid, exact=False)))
    data = [{"x": normal(1, 4, 8, 8, seed=i)} for i in range(3)]
    effects = Effects(advised, names, data)
    last = g.producers["y"].inputs[0]
    plain = replace(g, outputs=(last,))
    # In any order, since a change is undone before the next one.
    for some in (names, names[1:], names[:1], names):
        rounded = replace(plain, grids=dict.fromkeys(some, grid))
        expected = [loss(run(rounded, x), run(plain, x)) for x in data]
        found = effects.loss(dict.fromkeys(some, grid))
        assert found == pytest.approx(np.mean(expected), rel=0.05)
        assert found > 1e-5
