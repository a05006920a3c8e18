"""ONNX models as our graph.

One walk in topological order. Every node whose inputs are all constant is computed on the spot by
ONNX's own reference implementation, so arithmetic on shapes disappears whatever operators it
uses; any other node is lowered to our operators once ONNX's shape inference has told its output
shapes. Nothing else in the package sees ONNX's attribute forms or opset versions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graph.composed import composition
from graph.errors import GraphError, ModelFileError, UnsupportedError
from graph.lowering import Site, Unsupported, lower
from graph.model import Array, Graph, Node, Tensor
from graph.onnx_file import (
    OLDEST_OPSET,
    array,
    convolves,
    current,
    first_line,
    given_shape,
    in_order,
    label,
    names_read,
    read_model,
)
from graph.ops import Foreign

# Shape inference reads the values of small constants (a target shape, axes), never of weights.
LARGEST_SHAPE_PARAMETER = 1024
# What ONNX's reference raises when a node does not fit its inputs.
COMPUTATION_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
# Sizes beyond any memory come from damaged files, and overflow in ONNX's own inference.
LARGEST_TENSOR = 2**40
RANDOM = {"RandomNormal", "RandomUniform", "Multinomial", "Bernoulli"}
NO_TENSORS = {"SequenceEmpty", "SequenceConstruct", "SplitToSequence", "Optional"}


def import_onnx(
    source: str | Path | onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> Graph:
    """The graph of an ONNX file or model.

    `shapes` gives or overrides the shapes of inputs by name. A batch size that the model leaves
    open is 1.

    Operators we lack stay in the graph as `Foreign` nodes: a network can be listed as far as
    its shapes are known.

    Raises:
        ModelFileError: no such file, or not a whole ONNX model.
        UnsupportedError: an input's size is open, or its type is not a tensor.
        GraphError: the model contradicts itself: cyclic, missing weights, impossible shapes.
    """
    model = source if isinstance(source, onnx.ModelProto) else read_model(Path(source))
    return _Importer(current(model), dict(shapes or {})).graph()


class _Importer:
    def __init__(self, model: onnx.ModelProto, shapes: dict[str, Sequence[int]]) -> None:
        self._model = model
        self._shapes = shapes
        self._opsets = {o.domain or "": o.version for o in model.opset_import}
        self._opsets.setdefault("", self._opsets.get("ai.onnx", OLDEST_OPSET))
        self._opset_ids = [helper.make_opsetid(d, v) for d, v in self._opsets.items()]
        self._types: dict[str, onnx.TypeProto] = {}
        self._tensors: dict[str, Tensor] = {}
        self._constants: dict[str, Array] = {}
        self._nodes: list[Node] = []
        self._names: set[str] = set()
        self._read: set[str] = set()

    def graph(self) -> Graph:
        """Walk the model."""
        graph = self._model.graph
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise UnsupportedError(f"{name!r} is stored sparse: export it as a dense tensor")
        for initializer in graph.initializer:
            self._constants[initializer.name] = array(initializer)
        inputs = [v for v in graph.input if v.name not in self._constants]
        if unknown := self._shapes.keys() - {v.name for v in inputs}:
            names = ", ".join(v.name for v in inputs)
            raise GraphError(f"the model has no input {min(unknown)!r}: its inputs are {names}")
        for value in inputs:
            self._add_input(value)
        self._read = names_read(graph)
        for node in in_order(graph, {*self._constants, *self._tensors}):
            self._add(node)
        used = {x for node in self._nodes for x in node.inputs} | {v.name for v in graph.output}
        return Graph(
            graph.name,
            tuple(self._nodes),
            tuple(v.name for v in inputs),
            tuple(v.name for v in graph.output),
            self._tensors,
            {name: a for name, a in self._constants.items() if name in used},
        )

    def _add_input(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise UnsupportedError(f"input {value.name!r} is a {kind}: only tensors are supported")
        described = value.type.tensor_type
        if value.name in self._shapes:
            shape = tuple(int(size) for size in self._shapes[value.name])
        else:
            shape = given_shape(value)
        if min(shape, default=1) < 0:
            raise GraphError(f"input {value.name!r} cannot have shape {shape}")
        if 0 in shape:
            raise UnsupportedError(f"input {value.name!r} is empty: its shape is {shape}")
        self._set_type(value.name, helper.make_tensor_type_proto(described.elem_type, shape))

    def _set_type(self, name: str, described: onnx.TypeProto) -> None:
        """Note what shape inference says of a value; our tensors have only complete shapes."""
        self._types[name] = described
        tensor = described.tensor_type
        if tensor.elem_type and tensor.HasField("shape"):
            sizes = [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value")]
            if math.prod(map(abs, sizes)) > LARGEST_TENSOR or min(sizes, default=0) < 0:
                raise GraphError(f"{name!r} cannot have the shape {tuple(sizes)}")
            if len(sizes) == len(tensor.shape.dim):
                if tensor.elem_type not in onnx.TensorProto.DataType.values():
                    raise GraphError(f"{name!r} has an unknown type, {tensor.elem_type}")
                dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
                self._tensors[name] = Tensor(tuple(sizes), np.dtype(dtype))

    def _add(self, node: onnx.NodeProto) -> None:
        if not isinstance(node.op_type, str) or not isinstance(node.domain, str):
            raise ModelFileError(f"the model is damaged: {node.op_type!r} is no operator")
        first = node.input[0] if node.input else ""
        if node.op_type in ("Shape", "Size") and first in self._tensors:
            self._measure(node)
        elif node.op_type == "If" and first in self._constants:
            self._choose(node)
        elif self._computable(node):
            self._compute(node)
        else:
            self._infer(node)
            self._lower(node)

    def _computable(self, node: onnx.NodeProto) -> bool:
        return (
            all(not x or x in self._constants for x in node.input)
            and node.op_type not in RANDOM | NO_TENSORS
            and onnx.defs.has(node.op_type, node.domain)
            and not any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute)
        )

    def _measure(self, node: onnx.NodeProto) -> None:
        """Shape and Size need no values, only the shape."""
        shape = self._tensors[node.input[0]].shape
        if node.op_type == "Size":
            result = np.array(np.prod(shape), np.int64)
        else:
            bounds = {a.name: a.i for a in node.attribute}
            result = np.array(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)
        self._constants[node.output[0]] = result

    def _choose(self, node: onnx.NodeProto) -> None:
        """Put the branch that a constant condition selects in the place of an If."""
        taken = "then_branch" if self._constants[node.input[0]].all() else "else_branch"
        branch = next((a.g for a in node.attribute if a.name == taken), None)
        if branch is None or len(branch.output) != len(node.output):
            raise GraphError(f"node {label(node)} is impossible: no matching {taken}")
        for initializer in branch.initializer:
            self._constants[initializer.name] = array(initializer)
        for inner in branch.node:
            self._add(inner)
        for value, output in zip(branch.output, node.output, strict=True):
            self._add(helper.make_node("Identity", [value.name], [output], name=output))

    def _compute(self, node: onnx.NodeProto) -> None:
        from onnx.reference import ReferenceEvaluator

        feeds = {x: self._constants[x] for x in node.input if x}
        try:
            graph = helper.make_graph(
                [node],
                "constant",
                [helper.make_value_info(x, self._type(x)) for x in feeds],
                [helper.make_empty_tensor_value_info(y) for y in node.output if y],
            )
            model = helper.make_model(graph, opset_imports=self._opset_ids)
            results: Any = ReferenceEvaluator(model).run(None, feeds)
        except COMPUTATION_ERRORS as error:
            raise GraphError(
                f"node {label(node)} cannot be computed: {first_line(error)}"
            ) from None
        for name, value in zip(filter(None, node.output), results, strict=True):
            self._constants[name] = np.asarray(value)

    def _type(self, name: str) -> onnx.TypeProto:
        if name in self._constants:
            array = self._constants[name]
            return helper.make_tensor_type_proto(
                helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
        return self._types.get(name, onnx.TypeProto())

    def _infer(self, node: onnx.NodeProto) -> None:
        """Learn the types of the node's outputs, unless ONNX does not know the operator."""
        if not onnx.defs.has(node.op_type, node.domain):
            return
        version = self._opsets.get(node.domain, 1)
        try:
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        except onnx.defs.SchemaError:
            raise GraphError(f"node {label(node)} does not exist in opset {version}") from None
        names = [x for x in node.input if x]
        for name in names:
            # ONNX's own inference of Slice aborts the process on a size of 0.
            if name in self._tensors and 0 in self._tensors[name].shape:
                raise UnsupportedError(f"node {label(node)}: its input {name!r} is empty")
        small = [
            x
            for x in names
            if x in self._constants and self._constants[x].size <= LARGEST_SHAPE_PARAMETER
        ]
        try:
            inferred = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {x: self._type(x) for x in names},
                {x: numpy_helper.from_array(self._constants[x]) for x in small},
                opset_imports=self._opset_ids,
                ir_version=self._model.ir_version,
            )
        except (
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            ValueError,
        ) as error:
            if not all(self._type(x).tensor_type.elem_type for x in names):
                return  # the types are not wrong but unknown, or not those of tensors
            raise GraphError(f"node {label(node)} is impossible: {first_line(error)}") from None
        for name, described in inferred.items():
            self._set_type(name, described)

    def _lower(self, node: onnx.NodeProto) -> None:
        # Many exporters name outputs that nothing reads, such as the mask of a dropout.
        outputs = tuple(y if y in self._read else "" for y in node.output)
        if not any(outputs):
            return
        site = Site(
            node, outputs, self._opsets[""], self._tensors, self._constants, self._unique(node)
        )
        try:
            lower(site)
        except Unsupported as need:
            opset, types = self._opsets.get(node.domain, 1), [self._type(x) for x in node.input]
            if simpler := composition(node, opset, types, site.name):
                self._read = self._read.union(*(inner.input for inner in simpler))
                for inner in simpler:
                    self._add(inner)
                return
            bodies = [a.g for a in node.attribute if a.type == a.GRAPH]
            captured = {x for body in bodies for x in names_read(body)} & self._tensors.keys()
            op = Foreign(
                node.op_type, str(need), "Conv" in node.op_type or any(map(convolves, bodies))
            )
            inputs = (*node.input, *sorted(captured - {*node.input}))
            self._nodes.append(Node(site.name, op, inputs, tuple(filter(None, outputs))))
        else:
            self._nodes += site.nodes
            for name, tensor in site.tensors.items():
                element = helper.np_dtype_to_tensor_dtype(tensor.dtype)
                self._set_type(name, helper.make_tensor_type_proto(element, tensor.shape))

    def _unique(self, node: onnx.NodeProto) -> str:
        base = node.name or node.output[0]
        name, count = base, 1
        while name in self._names:
            name, count = f"{base}.{count}", count + 1
        self._names.add(name)
        return name
