"""Rewriting counts the readers of each value, and keeps the names of inputs and outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Graph, Node, Tensor
from fastrun.graph.core.ops import Binary, Identity, Op, Unary
from fastrun.graph.passes.edit import Edit

T = Tensor((2, 3), np.dtype(np.float32))


def chain(*steps: tuple[str, Op, str], outputs: tuple[str, ...] = ("y",)) -> Graph:
    """Nodes written (output, operator, inputs), from the input "x"."""
    nodes = tuple(Node(out, op, tuple(inputs.split()), (out,)) for out, op, inputs in steps)
    return Graph("g", nodes, ("x",), outputs, dict.fromkeys(["x", *(s[0] for s in steps)], T), {})


RELU, EXP, ADD = Unary("relu"), Unary("exp"), Binary("add")


def test_a_value_read_once_is_private() -> None:
    graph = chain(("a", RELU, "x"), ("b", EXP, "a"), ("y", ADD, "a b"))
    edit = Edit(graph)
    assert edit.private_producer("b") == graph.nodes[1]
    assert edit.private_producer("a") is None
    assert edit.private_producer("x") is None
    assert Edit(chain(("y", RELU, "x"), ("z", EXP, "y"))).private_producer("y") is None


def test_uses_follow_a_bypass() -> None:
    graph = chain(("a", RELU, "x"), ("i", Identity(), "a"), ("b", EXP, "i"), ("y", ADD, "i b"))
    edit = Edit(graph)
    assert edit.private_producer("a") is not None
    edit.bypass(graph.nodes[1])
    assert edit.private_producer("a") is None
    assert [n.inputs for n in edit] == [("x",), ("a",), ("a", "b")]
    assert [n.output for n in edit.done().nodes] == ["a", "b", "y"]


def test_a_bypass_keeps_a_value_private_if_one_reads_it() -> None:
    graph = chain(("a", RELU, "x"), ("i", Identity(), "a"), ("y", EXP, "i"))
    edit = Edit(graph)
    edit.bypass(graph.nodes[1])
    assert edit.private_producer("a") is not None


def test_uses_follow_a_replacement() -> None:
    graph = chain(("a", RELU, "x"), ("b", EXP, "x"), ("y", ADD, "a b"))
    edit = Edit(graph)
    edit.replace(graph.nodes[2], replace(graph.nodes[2], inputs=("a", "a")))
    assert edit.private_producer("a") is None
    assert [n.output for n in edit.done().nodes] == ["a", "y"]


def test_merging_computes_the_first_where_the_second_was() -> None:
    graph = chain(("a", RELU, "x"), ("b", EXP, "x"), ("y", ADD, "a b"))
    edit = Edit(graph)
    edit.merge(graph.nodes[0], graph.nodes[2], Node("a", ADD, ("x", "b"), ("y",)))
    assert [n.output for n in edit.done().nodes] == ["b", "y"]
    assert edit.private_producer("b") is not None


def test_a_bypassed_output_renames_its_producer() -> None:
    graph = chain(("a", RELU, "x"), ("y", Identity(), "a"), ("z", EXP, "a"), outputs=("y", "z"))
    edit = Edit(graph)
    edit.bypass(graph.nodes[1])
    assert [(n.inputs, n.output) for n in edit.done().nodes] == [(("x",), "y"), (("y",), "z")]


def test_new_constants_never_hide_a_value() -> None:
    edit = Edit(chain(("y", RELU, "x")))
    names = [edit.constant("y", np.zeros(1)), edit.constant("y", np.ones(1))]
    assert names == ["y.1", "y.2"]
    assert (edit.number("y.2"), edit.number("x")) == (1, 0)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("y", RELU, "b"), ("b", RELU, "x")], "'y' .Unary. uses 'b' before it exists"),
        ([("y", RELU, "x"), ("y", RELU, "x")], "computes 'y', which exists already"),
        ([("a", RELU, "x")], "nothing computes the output 'y'"),
    ],
)
def test_a_graph_is_in_topological_order(steps: list[tuple[str, Op, str]], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        chain(*steps)
