"""Turns an ONNX model into our graph.

The importer walks the nodes once, in topological order. It writes out functions, and branches
whose condition is known, in the place of their calls. For every other node ONNX's shape inference
gives the shapes of the outputs; then the node is lowered to our operators. If all inputs are
constant, the outputs are computed at once, so arithmetic on shapes disappears. ONNX's attributes
and opset versions are known only to this folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from fastrun.graph.core.errors import GraphError, ModelFileError, UnsupportedError
from fastrun.graph.core.model import Array, Graph, Node, unused
from fastrun.graph.core.ops import Foreign, Identity
from fastrun.graph.frontend.as_onnx import unlowered, with_kernel
from fastrun.graph.frontend.calls import chosen, unrolled
from fastrun.graph.frontend.composed import composition
from fastrun.graph.frontend.constants import by_onnx, by_reference
from fastrun.graph.frontend.dynamic import (
    DynamicOperator,
    is_dynamic,
    is_nonnegative,
    sums_of,
)
from fastrun.graph.frontend.file import (
    OLDEST_OPSET,
    SharedModel,
    Source,
    array,
    constant_value,
    current,
    in_order,
    label,
    live_nodes,
    names_defined,
    names_read,
    parse_model,
    read_model,
)
from fastrun.graph.frontend.floats import as_cast, in_float32, is_network, other_type, target
from fastrun.graph.frontend.inference import infer
from fastrun.graph.frontend.inline import Key, check_calls, function_nodes, key, own_domain
from fastrun.graph.frontend.lowering import Site, Unsupported, lower
from fastrun.graph.frontend.numbers import with_numbers
from fastrun.graph.frontend.opsets import Opsets
from fastrun.graph.frontend.outside import Outside
from fastrun.graph.frontend.qoperators import (
    QuantisedOperator,
    computes_integers,
    scales_read,
)
from fastrun.graph.frontend.quantised import Quantised, Stored
from fastrun.graph.frontend.sequences import Sequences
from fastrun.graph.frontend.values import Values

# Nodes of functions and branches written out; more come from files that are made to be endless.
MOST_INLINED = 2**17


def import_onnx(source: Source, shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """The graph of an ONNX file or model.

    `shapes` gives or overrides the shapes of inputs by name. A batch size that the model leaves
    open is 1.

    Nodes that no output depends on are left out. Unsupported operators stay in the graph as
    `Foreign` nodes, so that the network can be listed as far as its shapes are known.

    Raises:
        ModelFileError: there is no such file, or it is not a whole ONNX model.
        UnsupportedError: an input's size is open, or its type is not a tensor.
        GraphError: the model contradicts itself: cyclic, missing weights, impossible shapes.
    """
    weights: Mapping[str, Array] = {}
    if isinstance(source, SharedModel):
        source, weights = source.proto, source.weights
    if isinstance(source, bytes):
        source = parse_model(source)
    model = source if isinstance(source, onnx.ModelProto) else read_model(Path(source))
    try:
        return _Importer(current(model), shapes or {}, weights).graph()
    except UnicodeDecodeError as error:
        raise ModelFileError(f"the model is damaged: a name is not text: {error}") from None


class _Importer:
    def __init__(
        self,
        model: onnx.ModelProto,
        shapes: Mapping[str, Sequence[int]],
        given: Mapping[str, Array],
    ) -> None:
        self._model = model
        self._given = given  # weights that lie elsewhere
        self._opsets = Opsets(model.opset_import, model.ir_version)
        self._functions = {
            Key(own_domain(f.domain), f.name, f.overload): f for f in model.functions
        }
        check_calls(self._functions)
        self._values = Values()
        self._quantised = Quantised(self._values)
        self._sequences = Sequences(self._values)
        self._nodes: list[Node] = []
        self._labels: set[str] = set()  # of nodes
        self._results: set[str] = set()  # outputs that no node reads
        self._pending: list[tuple[onnx.NodeProto, Opsets]] = []
        self._inlined = 0
        self._float32 = is_network(model.graph) or bool(model.functions)
        self._outside = Outside(model.graph, shapes, self._float32)

    def graph(self) -> Graph:
        """The graph of the model."""
        graph, values = self._model.graph, self._values
        outputs = tuple(v.name for v in graph.output)
        if not outputs:
            raise ModelFileError("the model has no outputs: it is cut short or no ONNX model")
        nodes = live_nodes(graph)
        read = names_read(nodes)
        self._results = set(outputs) - read
        values.read |= read.union(outputs)
        values.reserve(names_defined(graph) | values.read)
        self._add_weights(graph)
        inputs = self._outside.add_inputs(values, self._quantised.stored)
        self._push(in_order(nodes, values.known), self._opsets)
        while self._pending:
            self._add(*self._pending.pop())
        for node in self._sequences.needed(outputs):
            self._add(node, self._opsets)
        for name in self._quantised.stored.keys() & {*outputs}:
            self._outside.types[name] = self._quantised.stored[name].dtype
            self._quantised.returned(name, self._nodes)
        self._outside.keep_types_of_outputs(values)
        rounded = self._quantised.grids
        weights, notes = self._quantised.weights.grids(self._nodes)
        whole = Graph(
            graph.name,
            tuple(self._nodes),
            inputs,
            outputs,
            values.tensors,
            values.constants,
            notes=(*self._quantised.notes, *notes),
        )
        live = whole.with_nodes(whole.nodes, whole.tensors, whole.constants, rounded | weights)
        used = tuple(x for x in inputs if live.uses[x])
        unread = tuple(x for x in inputs if x not in used)
        kept = replace(live, inputs=used, unread=unread, outside=self._outside.types)
        return with_numbers(kept)

    def _add_weights(self, graph: onnx.GraphProto) -> None:
        for sparse in graph.sparse_initializer:
            if sparse.values.name in self._values.read:
                raise UnsupportedError(
                    f"{sparse.values.name!r} is stored sparse: export it as a dense tensor"
                )
        for initializer in graph.initializer:
            name = initializer.name
            self._values.define(name)
            if name in self._values.read:
                given = self._given.get(name)
                self._values.constants[name] = array(initializer) if given is None else given

    def _push(self, nodes: Sequence[onnx.NodeProto], opsets: Opsets) -> None:
        """Make these nodes the next ones."""
        self._pending += [(node, opsets) for node in reversed(nodes)]

    def _write_out(self, nodes: Sequence[onnx.NodeProto], opsets: Opsets) -> None:
        """Make nodes the next ones that take the place of a single node."""
        self._inlined += len(nodes)
        if self._inlined > MOST_INLINED:
            raise UnsupportedError(
                f"node {label(nodes[0])} is one of more than {MOST_INLINED:,} in functions and "
                "branches: export the model without functions"
            )
        self._values.read |= names_read(nodes)
        self._push(nodes, opsets)

    def _add(self, node: onnx.NodeProto, opsets: Opsets) -> None:
        values = self._values
        for text in (node.op_type, node.domain):
            if not isinstance(text, str) or not text.isprintable():
                raise ModelFileError(f"the model is damaged: {text!r} is not an operator")
        if missing := [x for x in node.input if x and x not in values.known]:
            raise GraphError(
                f"node {label(node)} needs {missing[0]!r}, which nothing computes before it"
            )
        if function := self._functions.get(key(node)):
            self._call(function, node)
            return
        if node.domain == "ai.onnx":
            plain = onnx.NodeProto()
            plain.CopyFrom(node)
            plain.domain, node = "", plain
        if (parts := self._sequences.written(node, opsets[""])) is not None:
            self._write_out(parts, opsets)
            return
        if (branch := chosen(node, values)) is not None:
            self._write_out(branch, opsets)
            return
        node = self._computing_float32(as_cast(node, values))
        if (iterations := unrolled(node, opsets[""], values)) is not None:
            self._write_out(iterations, opsets)
            return
        if needed := self._sequences.needed(names_read([node])):
            self._push([*needed, node], opsets)
            return
        if self._quantise(node, opsets):
            return
        for name in filter(None, node.output):
            values.define(name)
        shape = values.shape(node.input[0]) if node.input else None
        if node.op_type in ("Shape", "Size") and not node.domain and shape is not None:
            values.constants[node.output[0]] = _measured(node, shape)
        elif node.op_type == "Constant" and not node.domain:
            values.constants[node.output[0]] = constant_value(node)
        else:
            self._lower(node, opsets)

    def _call(self, function: onnx.FunctionProto, node: onnx.NodeProto) -> None:
        """Put a function, with the opsets that it imports, in the place of a call."""
        opsets = Opsets(function.opset_import, self._model.ir_version)
        if opsets.outdated:
            raise UnsupportedError(
                f"node {label(node)} is a function of an opset older than {OLDEST_OPSET}: "
                "export the model for a newer one"
            )
        nodes = function_nodes(function, node, self._label(node), self._values.fresh)
        self._write_out(nodes, opsets)

    def _computing_float32(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node as it computes in float32; a conversion of an output is left to the caller."""
        if not self._float32:
            return node
        changed = in_float32(node, self._values, self._quantised.stored)
        if changed.op_type == "Identity" and node.op_type == "Cast":
            kind, (y,) = other_type(target(node)), changed.output
            if kind is not None and y in self._results:
                self._outside.types[y] = kind
        return changed

    def _quantise(self, node: onnx.NodeProto, opsets: Opsets) -> bool:
        """Add a node that quantises, or computes with quantised integers; False for any other."""
        values, quantised = self._values, self._quantised
        try:
            if computes_integers(node):
                if not values.are_constant(scales_read(node)):
                    raise Unsupported("constant scales")
                writing = QuantisedOperator(node, values, quantised.integers_of)
                self._write_out(writing.written(opsets[""]), opsets)
                return True
            if is_dynamic(node):
                if (sums := sums_of(node)) in {v.name for v in self._model.graph.output}:
                    raise Unsupported("sums that are scaled: those that are returned are exact")
                dynamic = DynamicOperator(node, values, quantised.integers_of)
                self._write_out(dynamic.written(self._is_nonnegative), opsets)
                if sums:
                    quantised.stored[sums] = Stored(None, np.dtype(np.int32), raw=True)
                return True
            meaning = quantised.meaning(node)
        except Unsupported as need:
            for name in filter(None, node.output):
                values.define(name)
            self._keep_integers(node, opsets, str(need))
            return True
        if meaning is None:
            return False
        if meaning.nodes:
            self._write_out(meaning.nodes, opsets)
            return True
        (x, *_), (y,) = node.input, node.output
        values.define(y)
        if meaning.constant is not None:
            values.constants[y] = meaning.constant
        else:
            self._nodes.append(Node(self._label(node), Identity(), (x,), (y,)))
            values.set_tensor(y, values.tensors[x])
        return True

    def _is_nonnegative(self, name: str) -> bool:
        """Whether the nodes so far show that a tensor has no negative numbers."""
        return is_nonnegative(
            name, lambda x: next((n for n in reversed(self._nodes) if x in n.outputs), None)
        )

    def _lower(self, node: onnx.NodeProto, opsets: Opsets) -> None:
        values = self._values
        try:
            node = self._quantised.moved(node)
        except Unsupported as need:
            self._keep_integers(node, opsets, str(need))
            return
        infer(node, opsets, values)
        # Many exporters name outputs that nothing reads, such as the mask of a dropout.
        outputs = tuple(y if y in values.read else "" for y in node.output)
        read = [y for y in outputs if y]
        # Nothing is computed of nothing; what is empty of something else, its operator refuses.
        if any(0 in (values.shape(x) or ()) for x in node.input) and all(
            0 in (values.shape(y) or ()) for y in read
        ):
            for y in read:
                tensor = values.tensors[y]
                values.constants[y] = np.empty(tensor.shape, tensor.dtype)
            return
        if not read:
            return
        name = self._label(node)
        constant = values.are_constant(node.input)
        feeds = {x: values.constants[x] for x in node.input if x in values.constants}
        known = values.tensors, values.constants
        site = Site(node, outputs, opsets[""], *known, name, values.fresh)
        try:
            if 0 in (values.shape(next(iter(node.input), "")) or ()):
                raise Unsupported("an input that is not empty")  # there was no inference
            lower(site)
        except Unsupported as need:
            types = [values.type(x) for x in node.input]
            if function := composition(node, opsets[node.domain], types):
                values.known.difference_update(node.output)
                inner = Opsets(function.opset_import or opsets.ids, opsets.ir_version)
                self._write_out(function_nodes(function, node, name, values.fresh), inner)
            else:
                self._keep(node, name, outputs, opsets, str(need))
            return
        for result, tensor in site.tensors.items():
            values.set_tensor(result, tensor)
        values.constants |= site.constants
        values.known.update(site.constants)  # it is shared
        for new, before in site.filters.items():
            self._quantised.weights.same_filters(new, before)
        feeds |= site.constants
        if constant:
            values.check_size(site.tensors)
            values.constants |= by_reference(node, site.nodes, site.tensors, feeds)
            for moved in site.nodes:
                self._quantised.weights.follow(moved)
        else:
            self._nodes += [with_kernel(lowered, values) for lowered in site.nodes]

    def _keep_integers(self, node: onnx.NodeProto, opsets: Opsets, need: str) -> None:
        """Add a node that calculates with integers, as NumPy does; else `need` says why not."""
        node, computed = self._quantised.of_integers(node)
        self._nodes += computed
        infer(node, opsets, self._values)
        self._keep(node, self._label(node), node.output, opsets, need)

    def _keep(
        self, node: onnx.NodeProto, name: str, outputs: Sequence[str], opsets: Opsets, need: str
    ) -> None:
        """Add a node as it is, for NumPy; one of constants is computed now.

        If nothing computes it, it becomes a foreign node with this `need`.
        """
        values = self._values
        kept = unlowered(node, name, outputs, opsets, need, values)
        if not isinstance(kept.op, Foreign) and values.are_constant(kept.inputs):
            values.check_size(node.output)
            found = by_onnx(kept, values.tensors, values.constants)
            if all(isinstance(value, np.ndarray) for value in found.values()):
                values.constants |= found
                return  # sequences are no constants
        self._nodes.append(kept)

    def _label(self, node: onnx.NodeProto) -> str:
        """A name for the node that no other node has."""
        base = node.name or next(filter(None, node.output), node.op_type)
        name = unused(base, self._labels)
        self._labels.add(name)
        return name


def _measured(node: onnx.NodeProto, shape: Sequence[int]) -> Array:
    """The value of a Shape or Size, which need only the shape of their input."""
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    bounds = {a.name: a.i for a in node.attribute}
    return np.array(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)
