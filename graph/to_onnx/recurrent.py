"""Writes recurrent layers as ONNX's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from fastrun.graph.core.model import Node
from fastrun.graph.core.ops import Recurrent
from fastrun.graph.to_onnx.nodes import Nodes

_KINDS = {"lstm": "LSTM", "gru": "GRU", "gru_before": "GRU", "tanh": "RNN", "relu": "RNN"}


def recurrent(to: Nodes, node: Node, op: Recurrent, inputs: Sequence[str], output: str) -> None:
    """Write a layer. ONNX's multiplies its input: by ones, as the products are there already."""
    name, (ways, rows, hidden) = node.name, to.graph.shape(node.inputs[1])
    x, weights, bias, initial = (*inputs, "", "")[:4]
    both = ""
    if bias:
        values = np.zeros((ways, 2 * rows), np.float32)
        values[:, -hidden:] = to.graph.constants[bias]
        both = to.constant(f"{name}.biases", values)
    axis = to.constant(f"{name}.axis", np.array([0], np.int64))
    states = []
    for i in range(op.states if initial else 0):
        ends = (to.constant(f"{name}.at", np.array([n], np.int64)) for n in (i, i + 1))
        states.append(to.put(name, "Squeeze", to.put(name, "Slice", initial, *ends, axis), axis))
    direction = "bidirectional" if ways == 2 else "reverse" if op.backwards[0] else "forward"
    kept: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if _KINDS[op.cell] == "GRU":
        kept["linear_before_reset"] = int(op.cell == "gru")
    if _KINDS[op.cell] == "RNN":
        kept["activations"] = [op.cell.capitalize()] * ways
    ones = np.eye(ways * rows, dtype=np.float32).reshape(ways, rows, -1)
    given = (x, to.constant(f"{name}.ones", ones), weights, both, "", *states)
    if not op.keeps_cell:
        to.put(name, _KINDS[op.cell], *given, output=output, **kept)
        return
    hidden_states, cell = to.fresh(f"{name}.states"), to.fresh(f"{name}.cell")
    outputs = [hidden_states, "", cell]
    to.nodes.append(helper.make_node("LSTM", given, outputs, f"{name}.layer", **kept))
    last = to.put(name, "Unsqueeze", cell, axis)
    to.put(name, "Concat", hidden_states, last, output=output, axis=0)
