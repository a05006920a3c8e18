"""Tells which nodes of a quantised network run in float32."""

from __future__ import annotations

from collections.abc import Iterator

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv
from fastrun.graph.core.precision import byte_grid, float_reason
from fastrun.graph.plan.kinds import is_view
from fastrun.graph.plan.tasks import tasks


def float_notes(graph: Graph) -> Iterator[tuple[str, str]]:
    """The nodes of a quantised network that run in float32 although they touch quantised tensors.

    Each comes with the reason.
    """
    for task in tasks(graph):
        node = task.node
        if not any(byte_grid(graph, x) for x in (*task.reads, task.output)):
            continue
        if isinstance(node.op, Conv):
            reason = float_reason(graph, node)
        elif is_view(graph, task):
            continue
        else:
            reason = "it has no kernel of bytes"
        if reason:
            yield node.label, reason
