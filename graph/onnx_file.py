"""ONNX models as their files hold them: read whole, of a known opset, nodes in order."""

from __future__ import annotations

import graphlib
from pathlib import Path

import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from graph.errors import GraphError, ModelFileError, UnsupportedError
from graph.model import Array, Shape

OLDEST_OPSET = 7
LARGEST_FILE = 2**31


def read_model(path: Path) -> onnx.ModelProto:
    """The model in a file.

    Raises:
        ModelFileError: no such file, or not a whole ONNX model.
    """
    if path.is_file() and path.stat().st_size >= LARGEST_FILE:
        raise ModelFileError(
            f"{path}: larger than the 2 GB an ONNX file can have: save it with external data"
        )
    try:
        # The format is given: a model is a model whatever its file is called.
        model = onnx.load(path, format="protobuf")
    except FileNotFoundError as error:
        if path.exists():
            raise ModelFileError(f"{path}: a file with its weights is missing: {error}") from None
        raise ModelFileError(f"no model file {str(path)!r}") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    except DecodeError:
        raise ModelFileError(
            f"{path}: not an ONNX model, or cut short: download or export it again"
        ) from None
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelFileError(
            f"{path}: its external weights are unusable: {first_line(error)}"
        ) from None
    if not model.graph.node:
        raise ModelFileError(f"{path}: not an ONNX model: it has no nodes")
    return model


def current(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with local functions inlined and of an opset that the lowering knows."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opsets = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if not model.opset_import:
        raise ModelFileError("the model states no opset: it is cut short or not ONNX's")
    if not opsets or opsets[0] >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise UnsupportedError(
            f"opset {opsets[0]} is older than {OLDEST_OPSET} and does not convert: "
            f"{first_line(error)}"
        ) from None


def given_shape(value: onnx.ValueInfoProto) -> Shape:
    """The shape the model gives an input, with an open batch size as 1."""
    dims = value.type.tensor_type.shape.dim
    # Some exporters write an open size as 0 or -1.
    sizes = [d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in dims]
    if sizes and not isinstance(sizes[0], int):
        sizes[0] = 1
    known = tuple(size for size in sizes if isinstance(size, int))
    if len(known) == len(sizes) and value.type.tensor_type.HasField("shape"):
        return known
    example = tuple(size if isinstance(size, int) else 224 for size in sizes) or (1, 3, 224, 224)
    raise UnsupportedError(
        f"the size {'x'.join(map(str, sizes))} of input {value.name!r} is open: export "
        f"the model with fixed sizes, or say, for example, shapes={{{value.name!r}: {example}}} "
        f"in Python, `--shape {value.name}={'x'.join(map(str, example))}` to plan and run "
        "(docs/faq.md)"
    )


def array(initializer: onnx.TensorProto) -> Array:
    """The values of a tensor.

    Raises:
        ModelFileError: they do not fit its shape or type.
    """
    try:
        return numpy_helper.to_array(initializer)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFileError(
            f"tensor {initializer.name!r} is damaged: {first_line(error)}"
        ) from None


def names_read(graph: onnx.GraphProto) -> set[str]:
    """The names a graph reads, those of the graphs inside its nodes included."""
    names = {x for node in graph.node for x in node.input} | {v.name for v in graph.output}
    inner = (a.g for node in graph.node for a in node.attribute if a.type == a.GRAPH)
    return names.union(*map(names_read, inner))


def convolves(graph: onnx.GraphProto) -> bool:
    """Whether a convolution is in the graph or in those inside its nodes."""
    return any(
        "Conv" in node.op_type or any(convolves(a.g) for a in node.attribute if a.type == a.GRAPH)
        for node in graph.node
    )


def in_order(graph: onnx.GraphProto, known: set[str]) -> list[onnx.NodeProto]:
    """The nodes in topological order: the file's own, if that is one."""
    producers = {y: i for i, node in enumerate(graph.node) for y in node.output if y}
    before: dict[int, set[int]] = {}
    for i, node in enumerate(graph.node):
        inputs = [x for x in node.input if x and x not in known]
        for name in inputs:
            if name not in producers:
                raise GraphError(
                    f"node {label(node)} needs {name!r}, which the model does not contain: "
                    "export it again with its weights"
                )
        before[i] = {producers[x] for x in inputs}
    if all(j < i for i, earlier in before.items() for j in earlier):
        return list(graph.node)
    try:
        return [graph.node[i] for i in graphlib.TopologicalSorter(before).static_order()]
    except graphlib.CycleError as error:
        raise GraphError(f"node {label(graph.node[error.args[1][0]])} depends on itself") from None


def label(node: onnx.NodeProto) -> str:
    """What a node is called in messages."""
    return f"{node.name or ', '.join(node.output)!r} ({node.op_type})"


def first_line(error: Exception) -> str:
    """The first line of what another library says."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
