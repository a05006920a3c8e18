"""Writes out a function, a branch of an `If`, a `Loop` or `Scan`, in the place of its node.

Every value in the body gets a new name. Bodies may use any names, also names of the model and of
other bodies, and a function may be called several times.
"""

from __future__ import annotations

import graphlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Array
from fastrun.graph.frontend.file import label, names_defined, names_read

# Gives a name like its argument that no value has.
Fresh = Callable[[str], str]
# Adds a constant of a name like its first argument.
Constant = Callable[[str, Array], str]
_Attributes = Mapping[str, onnx.AttributeProto]


class Key(NamedTuple):
    """The names by which a node calls a function."""

    domain: str
    name: str
    overload: str


def key(node: onnx.NodeProto) -> Key:
    """The key of the function that a node calls, if there is one."""
    return Key(own_domain(node.domain), node.op_type, node.overload)


def own_domain(name: str) -> str:
    """The domain; ONNX's own domain has two names and becomes ""."""
    return "" if name == "ai.onnx" else name


def check_calls(functions: Mapping[Key, onnx.FunctionProto]) -> None:
    """Refuse functions that call themselves.

    Raises:
        GraphError: a function calls itself; the message names it.
    """
    calls = {k: {c for c in _called(f.node) if c in functions} for k, f in functions.items()}
    try:
        graphlib.TopologicalSorter(calls).prepare()
    except graphlib.CycleError as error:
        raise GraphError(f"function {error.args[1][0].name!r} calls itself without end") from None


def _called(nodes: Iterable[onnx.NodeProto]) -> set[Key]:
    found = set[Key]()
    for node in nodes:
        found.add(key(node))
        for graph in (a.g for a in node.attribute if a.type == a.GRAPH):
            found |= _called(graph.node)
    return found


def function_nodes(
    function: onnx.FunctionProto, call: onnx.NodeProto, prefix: str, fresh: Fresh
) -> list[onnx.NodeProto]:
    """The nodes of a function with the names and attributes of one call of it.

    `prefix` begins the names of its nodes and values.

    Raises:
        GraphError: the call does not fit the function, or the function contradicts itself.
    """
    if len(call.input) > len(function.input) or len(call.output) > len(function.output):
        raise GraphError(f"node {label(call)} is impossible: its function has fewer operands")
    names = dict.fromkeys(function.input, "")
    names |= dict(zip(function.input, call.input, strict=False))
    if again := {y for node in function.node for y in node.output if y and y in names}:
        raise _repeated(call, min(again))
    # A function sees no outer values but its inputs.
    inside = [*names_read(function.node), *(y for node in function.node for y in node.output)]
    names |= {x: fresh(f"{prefix}/{x}") for x in inside if x and x not in names}
    given = {a.name: a for a in (*function.attribute_proto, *call.attribute)}
    outputs = function.output[: len(call.output)]
    nodes = _inlined(function.node, outputs, call, names, given, names.__getitem__)
    for i, node in enumerate(nodes):
        node.name = f"{prefix}/{node.name or f'{node.op_type}.{i}'}"
    return nodes


def branch_nodes(
    branch: onnx.GraphProto, choice: onnx.NodeProto, fresh: Fresh, names: Mapping[str, str] = {}
) -> list[onnx.NodeProto]:
    """The nodes of a branch of `choice`. A branch also sees the values around it.

    `names` has those of values that it sees by other names.

    Raises:
        GraphError: the branch has another number of outputs, or contradicts itself.
    """
    if len(branch.output) != len(choice.output):
        raise GraphError(f"node {label(choice)} is impossible: no matching {branch.name!r}")
    weights = [helper.make_node("Constant", [], [w.name], value=w) for w in branch.initializer]
    weights += [
        helper.make_node("Constant", [], [w.values.name], sparse_value=w)
        for w in branch.sparse_initializer
    ]
    outputs = [v.name for v in branch.output]
    return _inlined([*weights, *branch.node], outputs, choice, names, {}, fresh)


def goes_on(body: onnx.GraphProto, constants: Mapping[str, Array]) -> bool:
    """Whether a loop's body never changes the condition, or always says that it holds.

    The body may read `constants` around it.
    """
    values = {w.name: w for w in body.initializer}
    made = {y: node for node in body.node for y in node.output}
    name = body.output[0].name
    while name in made and made[name].op_type in ("Identity", "Cast"):
        name = made[name].input[0]
    if name in made and made[name].op_type == "Constant":
        for attribute in made[name].attribute:
            if attribute.name == "value":
                values[name] = attribute.t
    if name in values:
        return bool(numpy_helper.to_array(values[name]).all())
    inside = made.keys() | {v.name for v in body.input}
    outside = name in constants and name not in inside and bool(constants[name].all())
    return name == body.input[1].name or outside


def loop_nodes(
    loop: onnx.NodeProto, trips: int, opset: int, fresh: Fresh, constant: Constant
) -> list[onnx.NodeProto]:
    """The nodes of all iterations of a loop, one after another; there is at least one.

    `constant` adds a constant of a name like its first argument, and returns its name.

    Raises:
        GraphError: the body does not fit the loop, or contradicts itself.
    """
    body = next(a.g for a in loop.attribute if a.name == "body")
    carried = list(loop.input[2:])
    count = len(carried)
    if len(body.input) != count + 2 or len(body.output) != len(loop.output) + 1:
        raise GraphError(f"node {label(loop)} is impossible: its body has other operands")
    first, going, *states = (v.name for v in body.input)
    nodes, scanned = list[onnx.NodeProto](), [list[str]() for _ in loop.output[count:]]
    holds = constant(going, np.array(True))
    for i in range(trips):
        names = {first: constant(first, np.array(i)), going: holds}
        names |= dict(zip(states, carried, strict=True))
        results = [fresh(f"{v.name}.{i}") for v in body.output]
        call = helper.make_node("Loop", [], results, loop.name)
        nodes += branch_nodes(body, call, fresh, names)
        carried = results[1 : count + 1]
        for rows, result in zip(scanned, results[count + 1 :], strict=True):
            rows.append(result)
    nodes += _passed_on(carried, loop.output)
    for outer, rows in zip(loop.output[count:], scanned, strict=True):
        if outer:
            nodes += stacked(rows, outer, 0, opset, fresh, constant)
    return nodes


def scan_nodes(
    scan: onnx.NodeProto, trips: int, opset: int, fresh: Fresh, constant: Constant
) -> list[onnx.NodeProto]:
    """As `loop_nodes`, for a Scan, of opset 9 or newer."""
    given: Any = {a.name: helper.get_attribute_value(a) for a in scan.attribute}
    body, count = given["body"], given["num_scan_inputs"]
    first = len(scan.input) - count
    if len(body.input) != len(scan.input) or len(body.output) != len(scan.output) or first < 0:
        raise GraphError(f"node {label(scan)} is impossible: its body has other operands")
    collected = len(scan.output) - first
    axes, turned = (
        [list(given.get(f"scan_{name}_{kind}") or [0] * n)
         for name, n in (("input", count), ("output", collected))]
        for kind in ("axes", "directions")
    )  # fmt: skip
    nodes, carried = list[onnx.NodeProto](), list(scan.input[:first])
    scanned = [list[str]() for _ in range(collected)]
    for i in range(trips):
        parts = []
        for x, axis, backwards in zip(scan.input[first:], axes[0], turned[0], strict=True):
            place = constant("place", np.array(trips - 1 - i if backwards else i))
            parts.append(fresh(f"{x}.{i}"))
            nodes.append(helper.make_node("Gather", [x, place], parts[-1:], axis=axis))
        names = dict(zip((v.name for v in body.input), (*carried, *parts), strict=True))
        results = [fresh(f"{v.name}.{i}") for v in body.output]
        nodes += branch_nodes(body, helper.make_node("Scan", [], results, scan.name), fresh, names)
        carried = results[:first]
        for rows, result in zip(scanned, results[first:], strict=True):
            rows.append(result)
    nodes += _passed_on(carried, scan.output)
    for outer, rows, axis, backwards in zip(
        scan.output[first:], scanned, axes[1], turned[1], strict=True
    ):
        if outer:
            rows = rows[::-1] if backwards else rows
            nodes += stacked(rows, outer, axis, opset, fresh, constant)
    return nodes


def _passed_on(inner: Sequence[str], outer: Sequence[str]) -> list[onnx.NodeProto]:
    """Nodes that give values the names that they have outside."""
    pairs = zip(inner, outer, strict=False)
    return [helper.make_node("Identity", [x], [y]) for x, y in pairs if y]


def stacked(
    parts: Sequence[str], output: str, axis: int, opset: int, fresh: Fresh, constant: Constant
) -> list[onnx.NodeProto]:
    """Nodes that put values together along a new axis."""
    nodes, rows = list[onnx.NodeProto](), [fresh(f"{x}.row") for x in parts]
    places = constant("axis", np.array([axis])) if opset >= 13 else ""
    for x, row in zip(parts, rows, strict=True):
        if places:
            nodes.append(helper.make_node("Unsqueeze", [x, places], [row]))
        else:
            nodes.append(helper.make_node("Unsqueeze", [x], [row], axes=[axis]))
    return [*nodes, helper.make_node("Concat", rows, [output], axis=axis)]


def _inlined(
    body: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    call: onnx.NodeProto,
    names: Mapping[str, str],
    given: _Attributes,
    define: Fresh,
) -> list[onnx.NodeProto]:
    """Copies of the nodes of a body; its outputs get the names that `call` has for them.

    `names` maps names inside the body to names of outer values. `define` gives a name to each
    value that the body computes.
    """
    made = Counter(y for node in body for y in node.output if y)
    if again := [y for y, times in made.items() if times > 1]:
        raise _repeated(call, again[0])
    results: dict[str, str] = {}
    for inner, outer in zip(outputs, call.output, strict=True):
        if outer and made[inner]:
            results.setdefault(inner, outer)
    known = {**names, **{x: y for x, y in results.items() if x in names}}
    copies = []
    for node in body:
        copy = renamed(node, known, given)
        for i, y in enumerate(node.output):
            if y:
                known[y] = copy.output[i] = results.get(y) or define(y)
        copies.append(copy)
    for inner, outer in zip(outputs, call.output, strict=True):
        if outer and results.get(inner) != outer:
            copies.append(helper.make_node("Identity", [known.get(inner, inner)], [outer], outer))
    return copies


def renamed(node: onnx.NodeProto, names: Mapping[str, str], given: _Attributes) -> onnx.NodeProto:
    """A copy of a node, and of the graphs in it, that reads values by other names.

    Attributes that refer to attributes of the function are taken from `given`.
    """
    copy = onnx.NodeProto(
        op_type=node.op_type, domain=node.domain, overload=node.overload, name=node.name
    )
    copy.input.extend(names.get(x, x) for x in node.input)
    copy.output.extend(node.output)
    for attribute in node.attribute:
        source = given.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
        if source is None:
            continue
        added = copy.attribute.add()
        added.CopyFrom(source)
        added.name = attribute.name
        if source is attribute:
            for graph in (*([added.g] if added.HasField("g") else []), *added.graphs):
                _rename_inside(graph, names, given)
    return copy


def _rename_inside(graph: onnx.GraphProto, names: Mapping[str, str], given: _Attributes) -> None:
    """As `renamed`, for a graph inside a node. Its own values hide outer ones of the same name."""
    own = names_defined(graph)
    seen = {x: name for x, name in names.items() if x not in own}
    nodes = [renamed(node, seen, given) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.output:
        value.name = seen.get(value.name, value.name)


def _repeated(call: onnx.NodeProto, name: str) -> GraphError:
    return GraphError(f"node {label(call)} is impossible: {name!r} is computed twice inside")
