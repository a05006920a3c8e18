"""Passes leave the meaning of quantised networks as it is, to rounding at ties."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np

from fastrun.graph.core.grid import Grid, weight_axis
from fastrun.graph.core.model import Array, Graph, Node, Tensor
from fastrun.graph.core.ops import (
    Binary,
    Clip,
    Concat,
    Conv,
    Gemm,
    Identity,
    MatMul,
    Op,
    Pool,
    Reshape,
    Transpose,
    Unary,
)
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.absorb_shuffles import absorb_shuffles
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run
from fastrun.kernels.core.dtype import S8, U8
from tests.graph.test_channels import anything, units
from tests.support.graph_models import normal
from tests.support.random_graphs import Network

SCALE = int(os.environ.get("FASTRUN_TEST_SCALE", "1"))
F32 = np.dtype(np.float32)
COARSE, FINE, POSITIVE = Grid(0.25, 100, U8), Grid(0.03, 128, U8), Grid(0.02, 0, U8)


def graph(*steps: tuple[str, Op, str], grids: dict[str, Grid], **constants: Array) -> Graph:
    """Nodes written (output, operator, inputs), from input "x" (1, 4, 6, 6), of that shape.

    A convolution keeps the shape; the last node is the output.
    """
    shapes = {x: Tensor((1, 4, 6, 6), F32) for x in ("x", *(s[0] for s in steps))}
    nodes = tuple(Node(out, op, tuple(inputs.split()), (out,)) for out, op, inputs in steps)
    return Graph("g", nodes, ("x",), (steps[-1][0],), shapes, constants, grids=grids)


def with_grids(whole: Graph, draw: random.Random, x: dict[str, Array], share: float = 0.7) -> Graph:
    """The graph with half of its tensors rounded, and a share of its weights on grids."""
    seen = replace(whole, outputs=tuple(n.output for n in whole.nodes))
    values, constants, grids = run(seen, x), dict(whole.constants), dict[str, Grid]()
    for node in whole.nodes:
        value = values[node.output]
        if whole.tensor(node.output).dtype == F32 and draw.random() < 0.5:
            value = np.clip(np.nan_to_num(value), -100, 100)
            low, high = min(value.min(), 0), max(value.max(), 1e-3)
            scale = float(np.float32((high - low) / draw.choice([255, 200, 40])))
            moved = [x for x in node.inputs if x in grids and x in whole.tensors]
            own = Grid(scale, int(np.clip(np.rint(-low / scale), 0, 255)), U8)
            grids[node.output] = grids[moved[0]] if moved and draw.random() < 0.5 else own
        axis, name = weight_axis(node.op), node.input(1)
        once = whole.uses[name] == 1 and np.ndim(constants.get(name, 0)) > 1
        if axis is not None and once and draw.random() < share:
            weights = np.moveaxis(constants[name], axis, 0)
            largest = np.abs(weights.reshape(len(weights), -1)).max(axis=1)
            grid = Grid(np.maximum(largest / 127, 1e-6).astype(np.float32), 0, S8)
            constants[name] = grid.rounded(constants[name], axis).astype(np.float32)
            grids[name] = grid
    return replace(whole, grids=grids, constants=constants)


def assert_equal(found: dict[str, Array], truth: dict[str, Array], what: str = "") -> None:
    """Equal values, but for a few that rounding at ties has moved."""
    for name, expected in truth.items():
        scale = np.abs(expected).max() + 1e-6
        apart = np.abs(found[name] - expected) > 1e-5 * scale
        assert apart.mean() <= 0.02 or apart.sum() <= 1, f"{what} {name}: {apart.mean():.3f}"


def assert_weights_lie_on_grids(whole: Graph) -> None:
    for node in whole.nodes:
        name, axis = node.input(1), weight_axis(node.op)
        if name in whole.grids and name in whole.constants:
            assert axis is not None
            weights, grid = whole.constants[name], whole.grids[name]
            assert np.shape(grid.scale)[:1] == (weights.shape[axis],)
            np.testing.assert_allclose(weights, grid.rounded(weights, axis), rtol=1e-5, atol=0)


def test_random_networks() -> None:
    rounded = 0
    for seed in range(60 * SCALE):
        network = Network(seed)
        whole = with_grids(import_onnx(network.model()), random.Random(seed), network.inputs)
        with np.errstate(all="ignore"):
            better = optimise(whole)
            assert_equal(run(better, network.inputs), run(whole, network.inputs), f"seed {seed}")
        assert_weights_lie_on_grids(better)
        rounded += sum(name in better.tensors for name in better.grids)
    assert rounded > 60 * SCALE


def test_shuffled_channels() -> None:
    """With shuffles and slices that round, and with weights on grids that are read in orders."""
    for seed in range(30 * SCALE):
        whole = anything(seed)
        x = {"x": normal(*whole.shape("x"))}
        whole = with_grids(whole, random.Random(seed), x)
        better = absorb_shuffles(whole)
        assert_equal(run(better, x), run(whole, x), f"seed {seed}")
        assert_weights_lie_on_grids(better)
        assert sum(n in better.constants for n in better.grids) == sum(
            n in whole.constants for n in whole.grids
        )


def test_depthwise_convolutions_in_another_order_of_channels() -> None:
    """Of a network whose convolutions, and nothing else, round."""
    whole = units(3, 6)
    x = {"x": normal(*whole.shape("x"))}
    whole = with_grids(whole, random.Random(0), x, share=1)
    convolved = {n.output: n.inputs[1] for n in whole.nodes if isinstance(n.op, Conv)}
    grids = {name: Grid(0.01 + 0.001 * i, 9, U8) for i, name in enumerate(convolved)}
    weights = {name: whole.grids[name] for name in convolved.values()}
    whole = replace(whole, grids=grids | weights)
    found = absorb_shuffles(whole)
    assert_equal(run(found, x), run(whole, x))
    assert_weights_lie_on_grids(found)
    assert len(found.grids) == len(whole.grids)


CONV = Conv((1, 1), (1, 1, 1, 1), (1, 1))
ONE = Conv((1, 1), (0, 0, 0, 0), (1, 1))
SAME_POOL = Pool("max", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))


def on_grid(*shape: int, seed: int = 0) -> tuple[Array, Grid]:
    """Weights of 8 bits, and their grid."""
    scale = np.random.default_rng(seed).uniform(0.005, 0.02, shape[0]).astype(np.float32)
    grid = Grid(scale, 0, S8)
    return grid.rounded(normal(*shape, seed=seed) / 3).astype(np.float32), grid


W, ON_W = on_grid(4, 4, 3, 3)
V, ON_V = on_grid(4, 4, 1, 1, seed=1)


def better(whole: Graph) -> Graph:
    """The optimised graph, which computes the same."""
    found = optimise(whole)
    x = {"x": normal(1, 4, 6, 6)}
    assert_equal(run(found, x), run(whole, x))
    assert_weights_lie_on_grids(found)
    return found


def kinds(whole: Graph) -> list[str]:
    return [node.work for node in whole.nodes]


def test_a_convolution_and_its_epilogue_round_once() -> None:
    found = better(
        graph(
            ("c", CONV, "x w"), ("s", Binary("add"), "c x"), ("r", Unary("relu"), "s"),
            ("y", Identity(), "r"), grids={"y": COARSE, "w": ON_W}, w=W,
        )
    )  # fmt: skip
    assert kinds(found) == ["Conv + add + relu"]
    assert found.grids == {"y": COARSE, "w": ON_W}


def test_what_is_rounded_is_no_part_of_an_epilogue() -> None:
    found = better(
        graph(
            ("c", CONV, "x w"), ("s", Binary("add"), "c x"), ("r", Unary("relu"), "s"),
            grids={"c": FINE, "s": COARSE, "r": POSITIVE}, w=W,
        )
    )  # fmt: skip
    assert len(found.nodes) == 3
    assert [found.grids[node.output] for node in found.nodes] == [FINE, COARSE, POSITIVE]


def test_limits_go_only_if_the_grid_has_them() -> None:
    steps = ("c", CONV, "x w"), ("r", Unary("relu"), "c"), ("y", Identity(), "r")
    assert kinds(better(graph(*steps, grids={"y": POSITIVE}, w=W))) == ["Conv"]
    assert kinds(better(graph(*steps, grids={"y": FINE}, w=W))) == ["Conv + relu"]
    for limits, gone in (((0, 5.2), True), ((0, 5.08), False), ((-1, 6), True)):
        clipped = ("c", CONV, "x w"), ("y", Clip(*limits), "c")
        assert (len(better(graph(*clipped, grids={"y": POSITIVE}, w=W)).nodes) == 1) is gone
    advice = replace(POSITIVE, exact=False)
    assert kinds(better(graph(*steps, grids={"y": advice}, w=W))) == ["Conv + relu"]


def test_a_tensor_that_is_read_as_it_is_too() -> None:
    found = better(
        graph(("c", CONV, "x w"), ("q", Identity(), "c"), ("y", Binary("mul"), "q c"),
              grids={"q": COARSE}, w=W)
    )  # fmt: skip
    assert kinds(found) == ["Conv", "Identity", "mul"]
    found = better(graph(("q", Identity(), "x"), ("y", CONV, "q w"), grids={"q": COARSE}, w=W))
    assert kinds(found) == ["Identity", "Conv"]


def test_two_grids_in_a_row() -> None:
    found = better(
        graph(("c", CONV, "x w"), ("q", Identity(), "c"), ("y", Identity(), "q"),
              grids={"q": COARSE, "y": FINE}, w=W)
    )  # fmt: skip
    assert [found.grids[node.output] for node in found.nodes] == [COARSE, FINE]


def test_rounding_moves_before_pools_and_behind_them() -> None:
    pooled = ("c", CONV, "x w"), ("r", Unary("relu"), "c"), ("p", SAME_POOL, "r")
    found = better(graph(*pooled, ("y", Identity(), "p"), grids={"y": FINE}, w=W))
    assert kinds(found) == ["Conv + relu", "max pool"]
    assert [found.grids[node.output] for node in found.nodes] == [FINE, FINE]
    found = better(graph(*pooled, ("y", CONV, "p w"), grids={"r": FINE}, w=W))
    assert [found.grids.get(node.output) for node in found.nodes] == [FINE, FINE, None]
    average = Pool("average", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    found = better(graph(*pooled[:2], ("y", average, "r"), grids={"y": FINE}, w=W))
    assert [found.grids.get(node.output) for node in found.nodes] == [None, FINE]


def test_parts_of_other_grids_are_rounded_twice() -> None:
    parts = ("a", CONV, "x w"), ("b", CONV, "x w"), ("s", Concat(2), "a b")
    shapes = {"s": Tensor((1, 4, 12, 6), F32), "y": Tensor((1, 4, 12, 6), F32)}
    whole = graph(*parts, ("y", Unary("exp"), "s"), grids={"a": FINE, "s": COARSE}, w=W)
    found = better(replace(whole, tensors={**whole.tensors, **shapes}))
    assert found.grids == {"a": FINE, "s": COARSE}
    whole = graph(*parts, ("y", Unary("exp"), "s"), grids={"s": COARSE}, w=W)
    found = better(replace(whole, tensors={**whole.tensors, **shapes}))
    assert found.grids == {"a": COARSE, "b": COARSE, "s": COARSE}


def test_scales_fold_into_weights_on_a_grid() -> None:
    factor = np.float32([0.5, -2, 0, 3]).reshape(4, 1, 1)
    scaled = ("c", CONV, "x w"), ("y", Binary("mul"), "c f")
    found = better(graph(*scaled, grids={"w": ON_W}, w=W, f=factor))
    assert kinds(found) == ["Conv"]
    name = found.nodes[0].inputs[1]
    scale = ON_W.scale * np.float32([0.5, 2, 1, 3])
    scale[2] = 1  # any, as these weights are 0
    np.testing.assert_allclose(found.grids[name].scale, scale, rtol=1e-6)
    signs = np.float32([1, -1, 0, 1]).reshape(4, 1, 1, 1)
    stored = found.grids[name].stored(found.constants[name])
    np.testing.assert_array_equal(stored, ON_W.stored(W) * signs)


def test_weights_of_minus_128_have_no_opposite() -> None:
    lowest = W.copy()
    lowest[1, 2, 0, 0] = -128 * ON_W.scale[1]  # type: ignore[index]
    scaled = ("c", CONV, "x w"), ("y", Binary("mul"), "c f")
    for factor, count in ((-1.0, 2), (1.5, 1)):
        f = np.full((4, 1, 1), factor, np.float32)
        assert len(better(graph(*scaled, grids={"w": ON_W}, w=lowest, f=f)).nodes) == count


def test_parallel_convolutions_on_grids_stay_two() -> None:
    sides = ("a", CONV, "x w"), ("b", ONE, "x v"), ("y", Binary("add"), "a b")
    assert kinds(better(graph(*sides, grids={}, w=W, v=V))) == ["Conv"]
    for grids in ({"w": ON_W}, {"v": ON_V}):
        assert kinds(better(graph(*sides, grids=grids, w=W, v=V))) == ["Conv", "Conv + add"]


def test_constants_that_are_rounded() -> None:
    summed = ("e", Unary("exp"), "b"), ("y", Binary("add"), "x e")
    found = better(graph(*summed, grids={"e": COARSE}, b=normal(1, 4, 6, 6)))
    assert not found.grids
    assert kinds(found) == ["add"]


def test_products_keep_the_grid_of_their_weights() -> None:
    matrix, grid = on_grid(5, 6)
    matrix = matrix.T.copy()
    whole = graph(("y", Gemm(), "x w"), grids={"w": grid}, w=matrix)
    rows = Tensor((3, 6), F32), Tensor((3, 5), F32)
    found = optimise(replace(whole, tensors=dict(zip("xy", rows, strict=True))))
    assert [*found.grids.values()] == [grid]
    assert_weights_lie_on_grids(found)
    matrix, grid = on_grid(6, 6)
    found = better(graph(("y", MatMul(), "x w"), grids={"w": grid, "y": FINE}, w=matrix.T.copy()))
    assert "Conv" in kinds(found)
    assert grid in found.grids.values()


def test_dense_layers_and_moves_around_them_round() -> None:
    flat = Tensor((1, 144, 1, 1), F32)
    w, grid = on_grid(3, 144, 1, 1)
    out = Tensor((1, 3, 1, 1), F32)
    whole = graph(("q", Identity(), "x"), ("f", Reshape(), "q"), ("g", Identity(), "f"),
                  ("y", ONE, "g w"), grids={"q": FINE, "g": FINE, "y": COARSE, "w": grid}, w=w,
    )  # fmt: skip
    found = better(replace(whole, tensors={**whole.tensors, "f": flat, "g": flat, "y": out}))
    assert "Conv" in kinds(found)  # dense layers have no integers
    computed = [n for n in found.nodes if not isinstance(n.op, Transpose)]
    rounded = [found.grids[n.output] for n in computed]
    after = len(rounded) - [n.work for n in computed].index("Conv")
    assert rounded == [FINE] * (len(rounded) - after) + [COARSE] * after
    assert grid in found.grids.values()


def test_digests_tell_grids_but_not_their_numbers() -> None:
    whole = graph(("y", CONV, "x w"), grids={"y": COARSE, "w": ON_W}, w=W)
    plain, advised = replace(whole, grids={}), {"y": replace(COARSE, exact=False), "w": ON_W}
    digests = [g.digest for g in (whole, plain, replace(whole, grids=advised))]
    assert len(set(digests)) == 3
    assert replace(whole, grids={"y": FINE, "w": ON_V}).digest == whole.digest


def test_the_numbers_of_a_grid() -> None:
    grid = Grid(0.5, 10, U8)
    values = np.array([-9, -5.1, -0.25, 0.25, 0.75, 122.4, np.inf])
    assert grid.stored(values).tolist() == [0, 0, 10, 10, 12, 255, 255]
    assert grid.rounded(values).tolist() == [-5, -5, 0, 0, 1, 122.5, 122.5]
    assert grid.stored(values).dtype == np.uint8
    blocked = Grid(np.float32([[1, 2], [3, 4]]), np.uint8([[0, 1], [8, 8]]), U8, block=2)
    matrix = np.float32([[1, 2, 4], [-3, 3, 8]])
    assert blocked.stored(matrix).tolist() == [[1, 2, 3], [7, 9, 10]]
    assert blocked.rounded(matrix.T, axis=1).tolist() == matrix.T.tolist()
    assert Grid(0.5, 10, U8) == grid != Grid(0.5, 10, U8, exact=False)
