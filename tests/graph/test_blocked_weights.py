"""Products with weights of four bits in blocks keep them packed, where rows are few."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from tests.support.execution import relative_error
from tests.support.graph_models import model, normal

CPU = Cpu.host()
DEPTH, OUTPUTS, BLOCK = 128, 24, 32


def product(rows: int, zeros: bool, bias: bool) -> onnx.ModelProto:
    """One product with random weights of four bits."""
    draw, blocks = np.random.default_rng(3), DEPTH // BLOCK
    weights = {
        "w": draw.integers(0, 256, (OUTPUTS, blocks, BLOCK // 2)).astype(np.uint8),
        "s": draw.uniform(0.01, 0.02, OUTPUTS * blocks).astype(np.float32),
        "z": draw.integers(0, 256, OUTPUTS * blocks // 2).astype(np.uint8),
        "b": normal(OUTPUTS),
    }
    inputs = ["x", "w", "s", "z" if zeros else "", "", "b" if bias else ""]
    op = helper.make_node(
        "MatMulNBits", inputs, ["y"], domain="com.microsoft",
        K=DEPTH, N=OUTPUTS, bits=4, block_size=BLOCK,
    )  # fmt: skip
    return model([op], {k: v for k, v in weights.items() if k in inputs}, shape=(rows, DEPTH))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_few_rows_read_packed_weights(zeros: bool, bias: bool) -> None:
    for rows, packed in ((1, True), (7, True), (40, False)):
        graph = optimise(load_network(product(rows, zeros, bias)))
        plan, arrangement = make_plan(graph, heuristic_choices(CPU), CPU)
        [kernel] = [step for step in arrangement.steps if step.weights is not None][:1]
        assert (kernel.algorithm == "nibbles") == packed
        if packed:
            block = BLOCK // 2 + 4 + zeros  # bytes: weights, a scale, a zero point
            lanes = -(-OUTPUTS // CPU.lanes) * CPU.lanes
            assert kernel.packed().nbytes == lanes * (DEPTH // BLOCK) * block
        x = {"x": normal(rows, DEPTH)}
        found = Executable.of(arrangement, CPU, 2, plan).run(x)["y"]
        assert relative_error(found, reference.run(graph, x)["y"]) < 5e-6


@pytest.mark.parametrize(("bits", "block"), [(2, 16), (4, 32), (8, 64)])
@pytest.mark.parametrize("zeros", [False, True])
def test_rows_in_bytes_where_the_model_allows_it(bits: int, block: int, zeros: bool) -> None:
    """By `accuracy_level` 4, with any number of rows, also in three axes."""
    draw, blocks = np.random.default_rng(3), DEPTH // block
    weights = {
        "w": draw.integers(0, 256, (OUTPUTS, blocks, block * bits // 8)).astype(np.uint8),
        "s": draw.uniform(0.01, 0.02, OUTPUTS * blocks).astype(np.float32),
        "z": draw.integers(0, 256, OUTPUTS * (-(-blocks * bits // 8))).astype(np.uint8),
        "b": normal(OUTPUTS),
    }
    inputs = ["x", "w", "s", "z" if zeros else "", "", "b"]
    op = helper.make_node(
        "MatMulNBits", inputs, ["y"], domain="com.microsoft",
        K=DEPTH, N=OUTPUTS, bits=bits, block_size=block, accuracy_level=4,
    )  # fmt: skip
    for shape in ((1, DEPTH), (40, DEPTH), (2, 9, DEPTH)):
        given = model([op], {k: v for k, v in weights.items() if k in inputs}, shape=shape)
        graph = optimise(load_network(given))
        plan, arrangement = make_plan(graph, heuristic_choices(CPU), CPU)
        assert "blocks" in {step.algorithm for step in arrangement.steps}
        x = {"x": normal(*shape)}
        found = Executable.of(arrangement, CPU, 2, plan).run(x)["y"]
        truth = reference.run(graph, x)["y"]
        assert 1e-4 < relative_error(found, truth) < 4e-2
