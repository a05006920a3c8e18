"""Turns an ONNX model into our graph.

The importer walks the nodes once, in topological order. It writes out functions, and branches
whose condition is known, in the place of their calls. For every other node ONNX's shape inference
gives the shapes of the outputs; then the node is lowered to our operators. If all inputs are
constant, the outputs are computed at once, so arithmetic on shapes disappears. ONNX's attributes
and opset versions are known only to this folder.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fastrun.graph.core.errors import GraphError, ModelFileError, UnsupportedError
from fastrun.graph.core.model import Array, Graph, Node, Tensor, unused
from fastrun.graph.core.ops import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Foreign,
    Gather,
    Gemm,
    Identity,
    Numpy,
    Op,
    Pool,
)
from fastrun.graph.frontend.as_onnx import kept
from fastrun.graph.frontend.composed import composition
from fastrun.graph.frontend.constants import by_onnx, by_reference
from fastrun.graph.frontend.file import (
    OLDEST_OPSET,
    SharedModel,
    Source,
    array,
    constant_value,
    convolves,
    current,
    first_line,
    given_shape,
    in_order,
    label,
    live_nodes,
    names_defined,
    names_read,
    read_model,
)
from fastrun.graph.frontend.floats import in_float32, is_network, is_other, to_float32
from fastrun.graph.frontend.inline import (
    Key,
    branch_nodes,
    check_calls,
    function_nodes,
    goes_on,
    key,
    loop_nodes,
    own_domain,
)
from fastrun.graph.frontend.lowering import Site, Unsupported, lower
from fastrun.graph.frontend.qoperators import Writing, computes_integers, scales_read
from fastrun.graph.frontend.quantised import Quantised, Stored
from fastrun.graph.reference.by_onnx import is_known
from fastrun.kernels.core.cgroup import usable_memory

# Shape inference reads the values of small constants (a target shape, axes), never of weights.
LARGEST_SHAPE_PARAMETER = 1024
# Elements. Larger tensors come from damaged files, and overflow in ONNX's own inference.
LARGEST_TENSOR = 2**40
# Types that the caller may convert from and to: every conversion gives the same result.
TO_FLOAT = {"UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "FLOAT16", "DOUBLE"}
# The inputs that kernels need as constants.
_FIXED: Mapping[type[Op], Sequence[int]] = {
    Conv: (1, 2),
    ConvTranspose: (1, 2),
    BatchNorm: (1, 2, 3, 4),
    Gemm: (2,),
    Gather: (1,),
}
# Nodes of functions and branches written out; more come from files that are made to be endless.
MOST_INLINED = 2**17
# Nodes of all iterations of a loop that is written out.
MOST_UNROLLED = 2**12


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
    model = source if isinstance(source, onnx.ModelProto) else read_model(Path(source))
    try:
        return _Importer(current(model), dict(shapes or {}), weights).graph()
    except UnicodeDecodeError as error:
        raise ModelFileError(f"the model is damaged: a name is not text: {error}") from None


class _Opsets:
    """The versions of operators that a model or function uses."""

    def __init__(self, imported: Iterable[onnx.OperatorSetIdProto], ir_version: int) -> None:
        versions = {own_domain(o.domain): o.version for o in imported}
        self.ids = [helper.make_opsetid(*item) for item in versions.items()]
        self.ir_version = ir_version
        self._versions = versions
        self.checker = onnx.checker.C.CheckerContext()
        self.checker.ir_version = ir_version
        self.checker.opset_imports = versions

    def __getitem__(self, domain: str) -> int:
        return self._versions.get(domain, 1)

    @property
    def outdated(self) -> bool:
        """Whether the opset of ONNX's own operators is too old for the lowering."""
        return self._versions.get("", OLDEST_OPSET) < OLDEST_OPSET


class _Importer:
    def __init__(
        self, model: onnx.ModelProto, shapes: dict[str, Sequence[int]], weights: Mapping[str, Array]
    ) -> None:
        self._model = model
        self._shapes, self._weights = shapes, weights
        self._opsets = _Opsets(model.opset_import, model.ir_version)
        self._functions = {
            Key(own_domain(f.domain), f.name, f.overload): f for f in model.functions
        }
        check_calls(self._functions)
        self._types: dict[str, onnx.TypeProto] = {}
        self._tensors: dict[str, Tensor] = {}
        self._constants: dict[str, Array] = {}
        self._nodes: list[Node] = []
        self._labels: set[str] = set()  # of nodes
        self._names: set[str] = set()  # of values, including the model's later ones
        self._known: set[str] = set()
        self._read: set[str] = set()
        self._results: set[str] = set()  # outputs that no node reads
        self._outside: dict[str, np.dtype[Any]] = {}
        self._pending: list[tuple[onnx.NodeProto, _Opsets]] = []
        self._inlined = self._computed = 0
        self._float32 = is_network(model.graph) or bool(model.functions)
        self._integers: dict[str, str] = {}  # of quantised values, for NumPy
        self._quantised = Quantised(self._tensors, self._constants, self._known, self._fresh)

    def graph(self) -> Graph:
        """The graph of the model."""
        graph = self._model.graph
        outputs = tuple(v.name for v in graph.output)
        if not outputs:
            raise ModelFileError("the model has no outputs: it is cut short or no ONNX model")
        nodes = live_nodes(graph)
        read = names_read(nodes)
        self._results = set(outputs) - read
        self._read = read.union(outputs)
        self._names = names_defined(graph) | self._read
        for sparse in graph.sparse_initializer:
            if sparse.values.name in self._read:
                raise UnsupportedError(
                    f"{sparse.values.name!r} is stored sparse: export it as a dense tensor"
                )
        for initializer in graph.initializer:
            self._define(initializer.name)
            if initializer.name in self._read:
                given = self._weights.get(initializer.name)
                self._constants[initializer.name] = array(initializer) if given is None else given
        inputs = self._add_inputs([v for v in graph.input if v.name not in self._known])
        self._push(in_order(nodes, self._known), self._opsets)
        while self._pending:
            self._add(*self._pending.pop())
        for name in self._quantised.stored.keys() & {*outputs}:
            self._outside[name] = self._quantised.stored[name].dtype
            self._quantised.returned(name, self._nodes)
        self._keep_types_of_outputs()
        rounded = self._quantised.grids
        weights, notes = self._quantised.weights.grids(self._nodes)
        whole = Graph(
            graph.name,
            tuple(self._nodes),
            inputs,
            outputs,
            self._tensors,
            self._constants,
            notes=(*self._quantised.notes, *notes),
        )
        live = whole.with_nodes(whole.nodes, whole.tensors, whole.constants, rounded | weights)
        used = tuple(x for x in inputs if live.uses[x])
        unread = tuple(x for x in inputs if x not in used)
        return replace(live, inputs=used, unread=unread, outside=self._outside)

    def _add_inputs(self, inputs: Sequence[onnx.ValueInfoProto]) -> tuple[str, ...]:
        """Add the inputs; those that nothing reads may be of any kind. Returns all names."""
        if unknown := self._shapes.keys() - {v.name for v in inputs}:
            names = ", ".join(v.name for v in inputs)
            raise GraphError(f"the model has no input {min(unknown)!r}: its inputs are {names}")
        for value in inputs:
            self._define(value.name)
            if value.name in self._read:
                self._add_input(value)
        return tuple(v.name for v in inputs)

    def _add_input(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise UnsupportedError(f"input {value.name!r} is a {kind}: only tensors are supported")
        described = value.type.tensor_type
        given = self._shapes.get(value.name)
        try:
            shape = given_shape(value) if given is None else tuple(map(operator.index, given))
        except TypeError:
            raise GraphError(f"input {value.name!r} cannot have shape {given!r}") from None
        if min(shape, default=1) < 0 or math.prod(shape) > LARGEST_TENSOR:
            raise GraphError(f"input {value.name!r} cannot have shape {shape}")
        element = described.elem_type
        if is_other(element) and self._float32:
            self._outside[value.name] = np.dtype(helper.tensor_dtype_to_np_dtype(element))
            element = onnx.TensorProto.FLOAT
        elif _is_one_of(element, TO_FLOAT) and self._is_converted(value.name):
            kind = np.dtype(helper.tensor_dtype_to_np_dtype(element))
            self._outside[value.name] = kind
            if kind.kind in "ui":
                self._quantised.stored[value.name] = Stored(None, kind, raw=True)
            element = onnx.TensorProto.FLOAT
        self._set_type(value.name, helper.make_tensor_type_proto(element, shape))

    def _keep_types_of_outputs(self) -> None:
        """Let outputs have the floating-point types that the model declares."""
        for value in self._model.graph.output if self._float32 else ():
            declared, known = value.type.tensor_type.elem_type, self._tensors.get(value.name)
            if is_other(declared) and known is not None and known.dtype == np.float32:
                self._outside[value.name] = np.dtype(helper.tensor_dtype_to_np_dtype(declared))

    def _is_converted(self, name: str) -> bool:
        """Whether the model only converts an input to float32, or to quantised numbers."""
        graph = self._model.graph
        readers = [node for node in live_nodes(graph) if name in names_read([node])]
        return name not in {v.name for v in graph.output} and all(
            (node.op_type == "Cast" and _target(to_float32(node)) == onnx.TensorProto.FLOAT)
            or node.op_type == "DequantizeLinear"
            or computes_integers(node)
            for node in readers
        )

    def _push(self, nodes: Sequence[onnx.NodeProto], opsets: _Opsets) -> None:
        """Make these nodes the next ones."""
        self._pending += [(node, opsets) for node in reversed(nodes)]

    def _write_out(self, nodes: Sequence[onnx.NodeProto], opsets: _Opsets) -> None:
        """Make nodes the next ones that take the place of a single node."""
        self._inlined += len(nodes)
        if self._inlined > MOST_INLINED:
            raise UnsupportedError(
                f"node {label(nodes[0])} is one of more than {MOST_INLINED:,} in functions and "
                "branches: export the model without functions"
            )
        self._read |= names_read(nodes)
        self._push(nodes, opsets)

    def _define(self, name: str) -> None:
        if not isinstance(name, str):
            raise ModelFileError(f"the model is damaged: {name!r} is not a name")
        if name in self._known:
            raise GraphError(f"the model has two values called {name!r}: it is damaged")
        self._known.add(name)

    def _fresh(self, name: str) -> str:
        """A name like `name` that no value has."""
        free = unused(name, self._names)
        self._names.add(free)
        return free

    def _set_type(self, name: str, described: onnx.TypeProto) -> None:
        """Keep the type of a value as inference gives it; as a tensor if its shape is complete."""
        self._types[name] = described
        tensor = described.tensor_type
        if tensor.elem_type and tensor.HasField("shape"):
            sizes = [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value")]
            if math.prod(map(abs, sizes)) > LARGEST_TENSOR or min(sizes, default=0) < 0:
                raise GraphError(f"{name!r} cannot have the shape {tuple(sizes)}")
            if len(sizes) == len(tensor.shape.dim):
                if tensor.elem_type not in onnx.TensorProto.DataType.values():
                    raise GraphError(f"{name!r} has an unknown type, {tensor.elem_type}")
                dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
                known = self._tensors[name] = Tensor(tuple(sizes), dtype)
                _check_memory(name, known, known.nbytes)

    def _add(self, node: onnx.NodeProto, opsets: _Opsets) -> None:
        for text in (node.op_type, node.domain):
            if not isinstance(text, str) or not text.isprintable():
                raise ModelFileError(f"the model is damaged: {text!r} is not an operator")
        if missing := [x for x in node.input if x and x not in self._known]:
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
        if node.op_type == "If" and not node.domain and node.input[:1] and (
            node.input[0] in self._constants
        ):  # fmt: skip
            self._choose(node, opsets)
            return
        node = self._in_float32(self._as_cast(node))
        if trips := self._trips(node):
            fresh, constant = self._fresh, self._quantised.constant
            self._write_out(loop_nodes(node, trips, opsets[""], fresh, constant), opsets)
            return
        if self._quantise(node, opsets):
            return
        for name in filter(None, node.output):
            self._define(name)
        shape = self._shape(node.input[0]) if node.input else None
        if node.op_type in ("Shape", "Size") and not node.domain and shape is not None:
            self._measure(node, shape)
        elif node.op_type == "Constant" and not node.domain:
            self._constants[node.output[0]] = constant_value(node)
        else:
            self._lower(node, opsets)

    def _as_cast(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A `Cast` for a constant's `CastLike`, which would make it depend on what it is cast like.

        PyTorch casts the zeros of a missing bias so.
        """
        if node.op_type != "CastLike" or node.domain or len(node.input) != 2:
            return node
        if node.input[0] not in self._constants:
            return node
        kind = self._type(node.input[1]).tensor_type.elem_type
        if not kind:
            return node
        cast = helper.make_node("Cast", node.input[:1], node.output, name=node.name, to=kind)
        cast.attribute.extend(node.attribute)  # both have the same, beside the type
        return cast

    def _in_float32(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Make what a node computes, and the constants that it computes with, float32.

        Nodes of constants alone keep the types of the model, unless these are quantised weights.
        """
        names = [x for x in node.input if x]
        constants = [x for x in names if x in self._constants]
        quantises = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if not self._float32 or (constants == names and not quantises):
            return node
        for x in constants:
            self._constants[x] = in_float32(self._constants[x])
        return self._unconverted(to_float32(node), node)

    def _quantise(self, node: onnx.NodeProto, opsets: _Opsets) -> bool:
        """Add a node that quantises, or computes with quantised integers; False for any other."""
        values = self._quantised
        try:
            if computes_integers(node):
                if not all(x in self._constants for x in scales_read(node)):
                    raise Unsupported("constant scales")
                operands = self._constants, values.integers_of, values.constant, self._fresh
                writing = Writing(node, *operands)
                self._write_out(writing.written(opsets[""]), opsets)
                return True
            meaning = values.meaning(node)
        except Unsupported as need:
            for name in filter(None, node.output):
                self._define(name)
            node = self._of_integers(node)
            self._infer(node, opsets)
            self._keep(node, self._label(node), node.output, opsets, str(need))
            return True
        if meaning is None:
            return False
        if meaning.nodes:
            self._write_out(meaning.nodes, opsets)
            return True
        (x, *_), (y,) = node.input, node.output
        self._define(y)
        if meaning.constant is not None:
            self._constants[y] = meaning.constant
        else:
            self._nodes.append(Node(self._label(node), Identity(), (x,), (y,)))
            self._set_type(y, _type_of(self._tensors[x]))
        return True

    def _unconverted(self, node: onnx.NodeProto, given: onnx.NodeProto) -> onnx.NodeProto:
        """An `Identity` for a `Cast` from float32 to itself; it was `given` with the model's type.

        The caller converts an output to that type.
        """
        names = [*node.input, *node.output]
        if node.op_type != "Cast" or node.domain or len(names) != 2:
            return node
        before = self._tensors.get(names[0])
        if before is None or before.dtype != np.float32 or names[0] in self._quantised.stored:
            return node
        if _target(node) != onnx.TensorProto.FLOAT:
            return node
        if names[1] in self._results and is_other(_target(given)):
            kind = helper.tensor_dtype_to_np_dtype(_target(given))
            self._outside[names[1]] = np.dtype(kind)
        return helper.make_node("Identity", node.input, node.output, name=node.name)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        if name in self._constants:
            return self._constants[name].shape
        return self._tensors[name].shape if name in self._tensors else None

    def _measure(self, node: onnx.NodeProto, shape: tuple[int, ...]) -> None:
        """The value of a Shape or Size, which need only the shape of their input."""
        if node.op_type == "Size":
            result = np.array(math.prod(shape), np.int64)
        else:
            bounds = {a.name: a.i for a in node.attribute}
            result = np.array(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)
        self._constants[node.output[0]] = result

    def _choose(self, node: onnx.NodeProto, opsets: _Opsets) -> None:
        """Put the branch that a constant condition selects in the place of an If."""
        condition = self._constants[node.input[0]]
        if condition.size != 1 or condition.dtype != bool:
            raise GraphError(f"node {label(node)} is impossible: its condition is not a boolean")
        taken = "then_branch" if condition.all() else "else_branch"
        branch = next((a.g for a in node.attribute if a.name == taken), None)
        if branch is None:
            raise GraphError(f"node {label(node)} is impossible: it has no {taken}")
        self._write_out(branch_nodes(branch, node, self._fresh), opsets)

    def _trips(self, node: onnx.NodeProto) -> int:
        """The iterations of a loop that is written out; 0 for other nodes.

        Their number is constant and small, and nothing ends it before.
        """
        if node.op_type != "Loop" or node.domain or not all(node.input[2:]):
            return 0
        trips = self._constants.get(node.input[0]) if node.input else None
        condition = node.input[1] if len(node.input) > 1 else ""
        holds = not condition or bool(self._constants.get(condition, np.array(False)).all())
        body = next((a.g for a in node.attribute if a.name == "body"), None)
        if trips is None or trips.size != 1 or not holds or body is None or not goes_on(body):
            return 0
        count = int(trips.reshape(()))
        return count if count * len(body.node) <= MOST_UNROLLED else 0

    def _call(self, function: onnx.FunctionProto, node: onnx.NodeProto) -> None:
        """Put a function, with the opsets that it imports, in the place of a call."""
        opsets = _Opsets(function.opset_import, self._model.ir_version)
        if opsets.outdated:
            raise UnsupportedError(
                f"node {label(node)} is a function of an opset older than {OLDEST_OPSET}: "
                "export the model for a newer one"
            )
        nodes = function_nodes(function, node, self._label(node), self._fresh)
        self._write_out(nodes, opsets)

    def _type(self, name: str) -> onnx.TypeProto:
        if name in self._constants:
            return _type_of(self._constants[name])
        return self._types.get(name, onnx.TypeProto())

    def _infer(self, node: onnx.NodeProto, opsets: _Opsets) -> None:
        """Infer the types of the node's outputs, unless ONNX does not know the operator."""
        if not onnx.defs.has(node.op_type, node.domain):
            return
        version = opsets[node.domain]
        try:
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        except onnx.defs.SchemaError:
            raise GraphError(f"node {label(node)} does not exist in opset {version}") from None
        # ONNX's own inference of Split aborts the process if `num_outputs` is another number.
        parts = next((a.i for a in node.attribute if a.name == "num_outputs"), len(node.output))
        if parts != len(node.output):
            raise GraphError(
                f"node {label(node)} is impossible: it has {len(node.output)} outputs, not {parts}"
            )
        names = [x for x in node.input if x]
        # ONNX's own inference of Slice aborts the process if a size is 0.
        empty = [x for x in names if 0 in (self._shape(x) or ())]
        if schema.deprecated or (node.op_type == "Slice" and empty):
            return
        values = {x: self._constants[x] for x in names if x in self._constants}
        if node.op_type == "Range":  # a list of one number counts as the number
            values = {x: a.reshape(()) if a.size == 1 else a for x, a in values.items()}
        try:
            if not any(a.HasField("g") for a in node.attribute):
                onnx.checker.check_node(node, opsets.checker)
            inferred = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {x: _type_of(values[x]) if x in values else self._type(x) for x in names},
                {
                    x: numpy_helper.from_array(a)
                    for x, a in values.items()
                    if a.size <= LARGEST_SHAPE_PARAMETER
                },
                opset_imports=opsets.ids,
                ir_version=opsets.ir_version,
            )
        except (
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            ValueError,
        ) as error:
            if not all(self._type(x).tensor_type.elem_type for x in names):
                return  # a type is unknown, or is not a tensor: the node need not be wrong
            raise GraphError(f"node {label(node)} is impossible: {first_line(error)}") from None
        for name, described in inferred.items():
            self._set_type(name, described)

    def _lower(self, node: onnx.NodeProto, opsets: _Opsets) -> None:
        try:
            node = self._quantised.moved(node)
        except Unsupported as need:
            node = self._of_integers(node)
            self._infer(node, opsets)
            self._keep(node, self._label(node), node.output, opsets, str(need))
            return
        self._infer(node, opsets)
        # Many exporters name outputs that nothing reads, such as the mask of a dropout.
        outputs = tuple(y if y in self._read else "" for y in node.output)
        if not any(outputs):
            return
        name = self._label(node)
        constant = all(x in self._constants for x in node.input if x)
        feeds = {x: self._constants[x] for x in node.input if x in self._constants}
        site = Site(node, outputs, opsets[""], self._tensors, self._constants, name, self._fresh)
        try:
            if 0 in (self._shape(next(iter(node.input), "")) or ()):
                raise Unsupported("an input that is not empty")  # there was no inference
            lower(site)
        except Unsupported as need:
            types = [self._type(x) for x in node.input]
            if function := composition(node, opsets[node.domain], types):
                self._known.difference_update(node.output)
                inner = _Opsets(function.opset_import or opsets.ids, opsets.ir_version)
                self._write_out(function_nodes(function, node, name, self._fresh), inner)
            else:
                self._keep(node, name, outputs, opsets, str(need))
            return
        for result, tensor in site.tensors.items():
            self._set_type(result, _type_of(tensor))
        self._constants |= site.constants
        self._known.update(site.constants)  # it is shared
        feeds |= site.constants
        if constant:
            self._check_size(site.tensors)
            self._constants |= by_reference(node, site.nodes, site.tensors, feeds)
            for moved in site.nodes:
                self._quantised.weights.follow(moved)
        else:
            self._nodes += [self._with_kernel(lowered) for lowered in site.nodes]

    def _keep(
        self, node: onnx.NodeProto, name: str, outputs: Sequence[str], opsets: _Opsets, need: str
    ) -> None:
        """Add a node as it is, for NumPy; one of constants is computed now.

        If nothing computes it, it becomes a foreign node with this `need`.
        """
        if unknown := _unknown(node, opsets):
            inside = f": {unknown} inside it is unknown" if unknown != node.op_type else ""
            self._add_foreign(node, name, outputs, f"{need}{inside}")
            return
        captured = sorted((names_read([node]) - {*node.input}) & self._known)
        inputs = (*node.input, *captured)
        op = kept(node, inputs, outputs, opsets.ids)
        added = Node(name, op, inputs, tuple(filter(None, outputs)))
        if all(x in self._constants for x in inputs if x):
            self._check_size(node.output)
            found = by_onnx(added, self._tensors, self._constants)
            if all(isinstance(value, np.ndarray) for value in found.values()):
                self._constants |= found
                return
        self._nodes.append(replace(added, op=Numpy(op)))  # sequences are no constants

    def _of_integers(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node reading integers as the model has them, where the graph has their numbers."""
        stored = {x: self._quantised.stored[x] for x in node.input if x in self._quantised.stored}
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for name, value in stored.items():
            if name not in self._integers:
                integers = self._integers[name] = self._fresh(f"{name}.integers")
                self._define(integers)
                self._nodes += self._quantised.integers(name, integers)
                self._set_type(integers, _type_of(replace(self._tensors[name], dtype=value.dtype)))
        for i, name in enumerate(node.input):
            copy.input[i] = self._integers.get(name, name)
        return copy

    def _with_kernel(self, node: Node) -> Node:
        """The node, left to NumPy if no kernel computes it."""
        values = [x for x in (*node.inputs, *node.outputs) if x and x not in self._constants]
        tensors = [self._tensors[x] for x in values]
        native = all(t.dtype == np.float32 and 0 not in t.shape for t in tensors)
        fixed = [node.input(i) for i in _FIXED.get(type(node.op), ())]
        native = native and all(not x or x in self._constants for x in fixed)
        if isinstance(node.op, ConvTranspose | Pool):  # of images
            native = native and len(self._tensors[node.output].shape) < 5
        return node if native else replace(node, op=Numpy(node.op))

    def _check_size(self, names: Iterable[str]) -> None:
        """Refuse constants that would fill the memory, together with earlier ones."""
        for name in names:
            if tensor := self._tensors.get(name):
                self._computed += tensor.nbytes
                _check_memory(name, tensor, self._computed)

    def _add_foreign(
        self, node: onnx.NodeProto, name: str, outputs: Sequence[str], need: str
    ) -> None:
        bodies = [a.g for a in node.attribute if a.type == a.GRAPH]
        if "NMS" in node.op_type or "NonMax" in node.op_type:
            need += (
                ": export the model up to its boxes and scores, and choose among boxes behind it"
            )
        op = Foreign(node.op_type, need, "Conv" in node.op_type or any(map(convolves, bodies)))
        captured = names_read([node]) - {*node.input}
        inputs = (*node.input, *sorted(captured & self._known))
        self._nodes.append(Node(name, op, inputs, tuple(filter(None, outputs))))

    def _label(self, node: onnx.NodeProto) -> str:
        """A name for the node that no other node has."""
        base = node.name or next(filter(None, node.output), node.op_type)
        name = unused(base, self._labels)
        self._labels.add(name)
        return name


def _unknown(node: onnx.NodeProto, opsets: _Opsets) -> str:
    """The first operator that nothing computes, the node's own or one inside it; "" if none."""
    if not is_known(node.op_type, node.domain, opsets[node.domain]):
        return node.op_type
    bodies = (a.g.node for a in node.attribute if a.type == a.GRAPH)
    inside = (_unknown(inner, opsets) for body in bodies for inner in body)
    return next(filter(None, inside), "")


def _is_one_of(kind: int, names: set[str]) -> bool:
    return any(onnx.TensorProto.DataType.Value(name) == kind for name in names)


def _target(node: onnx.NodeProto) -> int:
    """The type that a Cast converts to."""
    return next((a.i for a in node.attribute if a.name == "to"), 0)


def _check_memory(name: str, tensor: Tensor, taken: int) -> None:
    """Refuse `taken` bytes above a quarter of the memory: a run holds input and output twice."""
    if taken > usable_memory() // 4:
        raise UnsupportedError(
            f"{name!r} ({tensor}) is too large for the memory that this process may use"
        )


def _type_of(values: Array | Tensor) -> onnx.TypeProto:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    return helper.make_tensor_type_proto(kind, values.shape)
