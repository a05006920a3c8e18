"""Settles the precision of a network: what a plan stores in bytes becomes part of the network."""

from __future__ import annotations

from dataclasses import replace

from fastrun.graph.core.advised import Advised
from fastrun.graph.core.model import Graph, Node, unused
from fastrun.graph.core.ops import Identity
from fastrun.graph.core.precision import byte_grid
from fastrun.graph.plan.plan import Plan
from fastrun.graph.plan.tasks import tasks
from fastrun.kernels.core.dtype import U8


def settled(advised: Advised, plan: Plan) -> Graph:
    """The network with exact grids where a plan for its advised grids uses them, and no others.

    Layers that compute with integers have the weights and biases that were rounded for them. A
    tensor of which only some readers read bytes is rounded by a node of its own, for these.
    """
    graph = advised.graph
    todo = tasks(graph)
    integers = {
        task.node.input(1): own.types.partition(">")[0]
        for task in todo
        if (own := plan.forms[task.output]).integers
    }
    written = {x for x, form in plan.forms.items() if form.writes.dtype is U8}
    read = {
        x
        for task in todo
        for x, layout in zip(task.reads, plan.forms[task.output].reads, strict=True)
        if layout.dtype is U8
    }
    grids = {x: replace(grid, exact=True) for x, grid in graph.grids.items() if x in written}
    constants, tensors = dict(graph.constants), dict(graph.tensors)
    for name, word in integers.items():
        other = advised.weights[name, word]
        grids[name] = replace(other.grids[name], exact=True)
        constants |= {x: other.constants[x] for x in advised.changed(name)}
    nodes, rounded = list[Node](), dict[str, str]()

    def split(name: str) -> None:
        """Round a tensor for its readers of bytes."""
        if name in read - written and (grid := byte_grid(graph, name)):
            new = rounded[name] = unused(f"{name}.rounded", tensors, constants)
            tensors[new], grids[new] = tensors[name], replace(grid, exact=True)
            nodes.append(Node(new, Identity(), (name,), (new,)))

    for name in graph.inputs:
        split(name)
    for node in graph.nodes:
        form = plan.forms.get(node.output)
        bytes_ = form is not None and U8 in {x.dtype for x in form.reads}
        inputs = tuple(rounded.get(x, x) if bytes_ else x for x in node.inputs)
        nodes.append(replace(node, inputs=inputs))
        split(node.output)
    return graph.with_nodes(tuple(nodes), tensors, constants, grids)
