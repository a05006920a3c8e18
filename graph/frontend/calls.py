"""Which nodes take the place of an `If`, or of a `Loop` or `Scan` of known iterations."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from fastrun.graph.core.errors import GraphError
from fastrun.graph.frontend.file import label
from fastrun.graph.frontend.inline import branch_nodes, goes_on, loop_nodes, scan_nodes
from fastrun.graph.frontend.values import Values

# Nodes of all iterations of a loop that is written out.
MOST_UNROLLED = 2**12


def chosen(node: onnx.NodeProto, values: Values) -> list[onnx.NodeProto] | None:
    """The nodes of the branch that an `If` selects; None if that is not constant, or no `If`.

    Raises:
        GraphError: the node contradicts itself.
    """
    if node.op_type != "If" or node.domain or not node.input:
        return None
    condition = values.constants.get(node.input[0])
    if condition is None:
        return None
    if condition.size != 1 or condition.dtype != bool:
        raise GraphError(f"node {label(node)} is impossible: its condition is not a boolean")
    taken = "then_branch" if condition.all() else "else_branch"
    branch = next((a.g for a in node.attribute if a.name == taken), None)
    if branch is None:
        raise GraphError(f"node {label(node)} is impossible: it has no {taken}")
    return branch_nodes(branch, node, values.fresh)


def unrolled(node: onnx.NodeProto, opset: int, values: Values) -> list[onnx.NodeProto] | None:
    """The nodes of all iterations of a loop; None for other nodes, and loops that stay loops.

    Their number is constant and small, and nothing ends it before.

    Raises:
        GraphError: the node contradicts itself.
    """
    if node.op_type == "Scan" and not node.domain and opset >= 9:
        return _scanned(node, opset, values)
    if node.op_type != "Loop" or node.domain or not all(node.input[2:]):
        return None
    trips = values.constants.get(node.input[0]) if node.input else None
    condition = node.input[1] if len(node.input) > 1 else ""
    holds = not condition or bool(values.constants.get(condition, np.array(False)).all())
    body = next((a.g for a in node.attribute if a.name == "body"), None)
    if trips is None or trips.size != 1 or not holds or body is None:
        return None
    if not goes_on(body, values.constants):
        return None
    count = int(trips.reshape(()))
    if count < 1 or count * len(body.node) > MOST_UNROLLED:
        return None
    return loop_nodes(node, count, opset, values.fresh, values.constant)


def _scanned(node: onnx.NodeProto, opset: int, values: Values) -> list[onnx.NodeProto] | None:
    """As `unrolled`, for a Scan: there is an iteration for each entry of its last input."""
    given: Any = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    shape = values.shape(node.input[-1]) if node.input else None
    axis = (given.get("scan_input_axes") or [0])[-1]
    if not shape or "body" not in given or given.get("num_scan_inputs", 0) < 1:
        return None
    if not -len(shape) <= axis < len(shape) or not all(node.input):
        return None
    count = shape[axis]
    if count < 1 or count * len(given["body"].node) > MOST_UNROLLED:
        return None
    return scan_nodes(node, count, opset, values.fresh, values.constant)
