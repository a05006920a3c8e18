"""Reads an ONNX file: a whole model, converted to a known opset, its nodes in order."""

from __future__ import annotations

import graphlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from fastrun.graph.core.errors import GraphError, ModelFileError, UnsupportedError
from fastrun.graph.core.model import Array, Shape, Tensor
from fastrun.graph.core.sizes import Sizes, advice, sizes_text, usual_shape
from fastrun.graph.frontend.external import embed

OLDEST_OPSET = 7
LARGEST_FILE = 2**31


@dataclass(frozen=True)
class SharedModel:
    """An ONNX model in memory whose initializers lie elsewhere: arrays that graphs share."""

    proto: onnx.ModelProto
    weights: Mapping[str, Array]

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs in their order."""
        return [v.name for v in self.proto.graph.input]

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs in their order."""
        return [v.name for v in self.proto.graph.output]


Source = str | Path | bytes | onnx.ModelProto | SharedModel
"""Where a model comes from: a file, or memory."""


def proto_of(model: onnx.ModelProto | SharedModel) -> onnx.ModelProto:
    """The model without the weights that it shares."""
    return model.proto if isinstance(model, SharedModel) else model


_FOREIGN = {
    **dict.fromkeys(
        (".pt", ".pth", ".ckpt", ".bin", ".safetensors"),
        "a file of PyTorch: load the module in Python and give it to `fastrun.from_torch(module, "
        "example)`, or write it as ONNX by `torch.onnx.export`",
    ),
    ".pt2": "a program exported by PyTorch: `torch.onnx.export(torch.export.load(file))` writes it "
    "as ONNX",
    ".tflite": "a file of TensorFlow Lite: `python -m tf2onnx.convert --tflite FILE --output "
    "model.onnx` (package tf2onnx) writes it as ONNX",
    **dict.fromkeys(
        (".h5", ".keras", ".pb"),
        "a file of TensorFlow: `python -m tf2onnx.convert` (package tf2onnx) writes it as ONNX",
    ),
    ".xml": "a file of OpenVINO: export the model as ONNX where it was made",
    ".param": "a file of ncnn: export the model as ONNX where it was made",
    ".mnn": "a file of MNN: export the model as ONNX where it was made",
    ".engine": "a file of TensorRT: export the model as ONNX where it was made",
    **dict.fromkeys(
        (".npy", ".npz", ".png", ".jpg", ".jpeg"),
        "an input, no model: `fastrun run MODEL --input FILE` takes it",
    ),
    ".ort": "a file of onnxruntime's own format: give the ONNX file that it was made of",
}
"""Files of other formats by their suffix, and what to do with them."""


def parse_model(content: bytes) -> onnx.ModelProto:
    """The model in the bytes of a file.

    Raises:
        ModelFileError: they are no whole ONNX model.
    """
    try:
        model = onnx.load_from_string(content)
    except DecodeError:
        raise ModelFileError("these bytes are no ONNX model, or are cut short") from None
    if not model.graph.output:
        raise ModelFileError("these bytes are no ONNX model: it has no outputs")
    return model


def read_model(path: Path) -> onnx.ModelProto:
    """The model in a file.

    Raises:
        ModelFileError: no such file, or not a whole ONNX model.
    """
    if (suffix := path.suffix.lower()) in _FOREIGN:
        raise ModelFileError(f"{path} is {_FOREIGN[suffix]}")
    if path.is_file() and path.stat().st_size >= LARGEST_FILE:
        raise ModelFileError(
            f"{path}: larger than the 2 GB that an ONNX file can have: save it with external data"
        )
    try:
        # Without a format, onnx would guess it from the name of the file.
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise ModelFileError(f"no model file {str(path)!r}") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    except DecodeError:
        raise ModelFileError(
            f"{path}: not an ONNX model, or cut short: download or export it again"
        ) from None
    if not model.graph.output:
        raise ModelFileError(f"{path}: not an ONNX model: it has no outputs")
    try:
        embed(model, path.parent)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None
    return model


def current(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, converted to an opset that the lowering knows.

    Raises:
        GraphError: the model has no opset, too new an opset, or does not convert.
    """
    if not model.opset_import:
        raise ModelFileError("the model states no opset: it is cut short or no ONNX model")
    opsets = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if opsets and opsets[0] > newest:
        raise UnsupportedError(
            f"opset {opsets[0]} is newer than {newest}, the newest one that the installed onnx "
            "package knows: update the package, or export the model for an older opset"
        )
    if not opsets or opsets[0] >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        raise UnsupportedError(
            f"opset {opsets[0]} is older than {OLDEST_OPSET} and does not convert: "
            f"{first_line(error)}"
        ) from None


def given_sizes(value: onnx.ValueInfoProto) -> Sizes | None:
    """The sizes that the model gives a value, names in the place of open ones; None: none."""
    described = value.type.tensor_type
    if not described.HasField("shape"):
        return None
    # Some exporters write an open size as 0 or -1.
    return tuple(
        d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in described.shape.dim
    )


def given_shape(value: onnx.ValueInfoProto) -> Shape:
    """The shape that the model gives an input; an open batch size becomes 1.

    Raises:
        UnsupportedError: another size is open.
    """
    sizes = given_sizes(value)
    shape = usual_shape(sizes)
    if shape is not None:
        return shape
    raise UnsupportedError(
        f"sizes of input {value.name!r} are open, {sizes_text(sizes)}: give "
        f"{advice(value.name, sizes)}"
    )


def model_inputs(model: onnx.ModelProto) -> tuple[dict[str, Sizes | None], tuple[str, ...]]:
    """The sizes of the inputs that nodes or outputs read, and the names of the other inputs."""
    graph = model.graph
    read = names_read(live_nodes(graph)).union(v.name for v in graph.output)
    weights = {w.name for w in graph.initializer}
    inputs = [v for v in graph.input if v.name not in weights]
    sizes = {v.name: given_sizes(v) for v in inputs if v.name in read}
    return sizes, tuple(v.name for v in inputs if v.name not in read)


def inputs_with_values(model: onnx.ModelProto) -> dict[str, Tensor]:
    """The inputs for which the model has a value, which a caller may leave out."""
    inputs = {v.name for v in model.graph.input}
    return {
        w.name: Tensor(tuple(w.dims), np.dtype(onnx.helper.tensor_dtype_to_np_dtype(w.data_type)))
        for w in model.graph.initializer
        if w.name in inputs
    }


def array(tensor: onnx.TensorProto) -> Array:
    """The values of a tensor.

    Raises:
        ModelFileError: the values do not fit the shape or type, or are not in the model.
    """
    if tensor.data_location == tensor.EXTERNAL:
        raise ModelFileError(
            f"the values of tensor {tensor.name!r} are in another file: give the path of the "
            "model, or load it with its external data"
        )
    try:
        if min(tensor.dims, default=0) < 0:
            raise ValueError(f"its shape is {tuple(tensor.dims)}")
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"tensor {tensor.name!r} is damaged: {first_line(error)}") from None


def constant_value(node: onnx.NodeProto) -> Array:
    """The value of a `Constant`.

    Raises:
        ModelFileError: it has none.
        UnsupportedError: it is sparse.
    """
    given = {a.name: a for a in node.attribute}
    match [*given]:
        case ["value"]:
            return array(given["value"].t)
        case ["value_float" | "value_floats" | "value_int" | "value_ints"]:
            name, attribute = given.popitem()
            value = onnx.helper.get_attribute_value(attribute)
            return np.array(value, np.float32 if "float" in name else np.int64)
        case ["value_string" | "value_strings"]:
            return np.array(onnx.helper.get_attribute_value(given.popitem()[1]), object)
        case ["sparse_value"]:
            raise UnsupportedError(f"{node.output[0]!r} is stored sparse: export it dense")
    raise ModelFileError(f"node {label(node)} is damaged: it has no value")


def names_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The names that nodes read, including outer values that graphs inside the nodes read."""
    found = set[str]()
    for node in nodes:
        found.update(node.input)
        for graph in (a.g for a in node.attribute if a.type == a.GRAPH):
            read = names_read(graph.node) | {v.name for v in graph.output}
            found |= read - names_defined(graph)
    return found


def names_defined(graph: onnx.GraphProto) -> set[str]:
    """The names of the values that a graph defines."""
    found = {v.name for v in (*graph.input, *graph.initializer)}
    return found.union(*(node.output for node in graph.node))


def convolves(graph: onnx.GraphProto) -> bool:
    """Whether the graph, or a graph inside its nodes, has a convolution."""
    return any(
        "Conv" in node.op_type or any(convolves(a.g) for a in node.attribute if a.type == a.GRAPH)
        for node in graph.node
    )


def live_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that an output depends on, in the order of the file.

    Raises:
        GraphError: two nodes compute values of one name.
    """
    made = Counter(y for node in graph.node for y in node.output if y)
    if again := [y for y, times in made.items() if times > 1]:
        raise GraphError(f"two nodes compute {again[0]!r}: the model is damaged")
    producers = {y: i for i, node in enumerate(graph.node) for y in node.output if y}
    live, pending = set[int](), [v.name for v in graph.output]
    while pending:
        i = producers.get(pending.pop(), -1)
        if i >= 0 and i not in live:
            live.add(i)
            pending += names_read([graph.node[i]])
    return [graph.node[i] for i in sorted(live)]


def in_order(nodes: Sequence[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """The nodes in topological order; their given order if it is one.

    Raises:
        GraphError: a value that a node needs is missing, or a node depends on itself.
    """
    producers = {y: i for i, node in enumerate(nodes) for y in node.output if y}
    before: dict[int, set[int]] = {}
    for i, node in enumerate(nodes):
        if missing := [x for x in node.input if x and x not in known and x not in producers]:
            raise GraphError(
                f"node {label(node)} needs {missing[0]!r}, which the model does not contain: "
                "export it again with its weights"
            )
        before[i] = {producers[x] for x in names_read([node]) if x and x in producers}
    if all(j < i for i, earlier in before.items() for j in earlier):
        return list(nodes)
    try:
        return [nodes[i] for i in graphlib.TopologicalSorter(before).static_order()]
    except graphlib.CycleError as error:
        raise GraphError(f"node {label(nodes[error.args[1][0]])} depends on itself") from None


def label(node: onnx.NodeProto) -> str:
    """The node's name in messages."""
    operator = node.op_type if node.op_type.isprintable() else repr(node.op_type)
    return f"{node.name or ', '.join(node.output)!r} ({operator})"


def first_line(error: Exception) -> str:
    """The first line of another library's message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
