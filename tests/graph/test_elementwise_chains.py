"""Elementwise operators that follow one another are one task, and compute the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, helper

from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.tasks import CHAIN, tasks
from fastrun.graph.planner import make_plan
from fastrun.graph.reference.interpreter import run
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from tests.support.agreement import assert_close
from tests.support.graph_models import model, node, normal
from tests.support.lanes import EVERY_CPU

CPU = Cpu.host()


def checked(proto: ModelProto, sizes: list[int], cpu: Cpu = CPU) -> None:
    """The tasks have so many nodes each, and give the right results."""
    graph = optimise(import_onnx(proto))
    assert [len(task.nodes) for task in tasks(graph)] == sizes
    inputs = {x: normal(*graph.shape(x), seed=5) for x in graph.inputs}
    truth = run(graph, inputs)
    plan, arrangement = make_plan(graph, heuristic_choices(cpu), cpu)
    for name, found in Executable.of(arrangement, cpu, 1, plan).run(inputs).items():
        assert_close(found, truth[name])


# Shapes of the input: vectors of one channel, of several; tails; three and two axes.
@pytest.mark.parametrize("shape", [(1, 16, 5, 7), (2, 3, 4, 9), (1, 6, 33), (3, 5)])
@pytest.mark.parametrize("cpu", EVERY_CPU)
def test_operands_of_all_kinds(shape: tuple[int, ...], cpu: Cpu) -> None:
    """Two computed operands, constants of one number, of each channel and of all elements."""
    c, wide = shape[1], (1,) * (len(shape) - 2)
    nodes = [
        node("Exp", "x", "e"),
        node("Sigmoid", "x", "s"),
        node("Add", "e s", "a"),
        node("Mul", "a scale", "b"),
        node("Sub", "b x", "d"),
        node("Clip", "d low high", "f"),
        node("Max", "f whole", "y"),
    ]
    values = {
        "scale": normal(c, *wide),
        "low": np.float32(-1.5),
        "high": np.float32(2.0),
        "whole": normal(*shape[1:], seed=3),
    }
    proto = model(nodes, values, shape=shape)
    checked(proto, [7], cpu)


def test_channels_keep_their_constants_in_blocks() -> None:
    """Between convolutions that have 20 channels in blocks."""
    nodes = [
        node("Conv", "x v", "c"),
        node("Softsign", "c", "s"),
        node("Div", "s by", "d"),
        node("Mul", "d d", "m"),
        node("Conv", "m w", "y"),
    ]
    by = 1 + np.abs(normal(20, 1, 1))
    values = {"v": normal(20, 20, 1, 1), "w": normal(20, 20, 1, 1), "by": by}
    checked(model(nodes, values, shape=(1, 20, 6, 5)), [1, 3, 1])


def test_what_others_read_is_stored() -> None:
    nodes = [
        node("Exp", "x", "e"),
        node("Neg", "e", "n"),
        node("Softmax", "n", "s"),
        node("Tanh", "e", "t"),
    ]
    nodes += [node("Add", "s t", "y")]
    checked(model(nodes, shape=(1, 4, 8)), [1, 1, 1, 2])


def test_an_output_is_stored() -> None:
    proto = model([node("Exp", "x", "z"), node("Neg", "z", "y")], shape=(1, 4, 8))
    proto.graph.output.append(helper.make_empty_tensor_value_info("z"))
    checked(proto, [1, 1])


def test_smaller_tensors_are_not_computed_again_for_each_element() -> None:
    nodes = [
        node("ReduceMean", "x", "m", axes=[2], keepdims=1),
        node("Exp", "m", "e"),
        node("Mul", "x e", "p"),
        node("Neg", "p", "y"),
    ]
    checked(model(nodes, shape=(1, 4, 8)), [1, 1, 2])


def test_three_computed_operands_at_most() -> None:
    """A third one lies where a table says, in front of the constants."""
    nodes = [
        node("Softmax", "x", "a"),
        node("Softmax", "x", "b", axis=1),
        node("Softmax", "x", "c", axis=0),
        node("Add", "a b", "p"),
        node("Mul", "p scale", "q"),
        node("Sub", "q x", "r"),
        node("Mul", "r c", "y"),
    ]
    checked(model(nodes, {"scale": normal(4, 1)}, shape=(2, 4, 8)), [1, 1, 1, 3, 1])


@pytest.mark.parametrize("shape", [(1, 20, 6, 5), (2, 3, 7)])
def test_choices_are_members(shape: tuple[int, ...]) -> None:
    """A leaky activation as some exporters write it, between convolutions."""
    c, wide = shape[1], (1,) * (len(shape) - 2)
    nodes = [
        node("Conv", "x v", "k"),
        node("Greater", "k least", "m"),
        node("Mul", "k slope", "s"),
        node("Where", "m k s", "w"),
        node("Where", "fixed w none", "t"),
        node("Neg", "t", "n"),
        node("Conv", "n u", "y"),
    ]
    values = {
        "v": normal(c, c, *wide),
        "u": normal(c, c, *wide, seed=1),
        "least": np.float32(0),
        "slope": normal(c, *wide),
        "fixed": normal(*shape[1:]) > 0,
        "none": np.float32(-2),
    }
    checked(model(nodes, values, shape=shape), [1, 5, 1])


def test_long_chains_are_cut() -> None:
    nodes = [node("Sin", f"v{i}" if i else "x", f"v{i + 1}") for i in range(CHAIN)]
    nodes += [node("Sin", f"v{CHAIN}", "y")]
    checked(model(nodes, shape=(1, 4, 8)), [CHAIN, 1])
