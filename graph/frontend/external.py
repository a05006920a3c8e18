"""Reads weights that an ONNX model keeps in files of their own.

The onnx package could read them too, but it refuses links, and caches of models (Hugging Face's
hub, DVC, conda) consist of links.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

import numpy as np
import onnx
from onnx import TensorProto, helper

from fastrun.graph.core.errors import ModelFileError

# Bits of a value, for types of which several values share a byte.
_BITS = {
    "INT2": 2,
    "UINT2": 2,
    "INT4": 4,
    "UINT4": 4,
    "FLOAT4E2M1": 4,
    "FLOAT6E2M3": 6,
    "FLOAT6E3M2": 6,
}


def embed(model: onnx.ModelProto, folder: Path) -> None:
    """Read the values that the model keeps in files of `folder` into the model itself.

    Links are followed. Names that lead out of the folder are refused.

    Raises:
        ModelFileError: a file is missing or too short, or its name leads out of the folder.
    """
    nodes = (function.node for function in model.functions)
    for tensor in (*_of_graph(model.graph), *(t for some in nodes for t in _of_nodes(some))):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = _read(tensor, folder)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            yield from _of_graph(inner)


def _read(tensor: onnx.TensorProto, folder: Path) -> bytes:
    where = {entry.key: entry.value for entry in tensor.external_data}
    name = where.get("location", "")
    place, needed = PurePath(name), _size(tensor)
    if not place.parts or place.is_absolute() or ".." in place.parts or "\0" in name:
        raise _unusable(tensor, f"{name!r} is not a file in the folder of the model")
    try:
        offset, length = (
            int(where.get(key) or n) for key, n in (("offset", 0), ("length", needed))
        )
    except ValueError as error:
        raise _unusable(tensor, str(error)) from None
    if offset < 0 or length != needed:
        raise _unusable(tensor, f"its {needed} bytes are not {length} at {offset} of {name!r}")
    path = folder / place
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(tensor, f"{path} is not a file")
        if status.st_size < offset + length:
            raise _unusable(tensor, f"{path} is too short for {length} bytes at {offset}")
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except FileNotFoundError:
        raise ModelFileError(
            f"a file with its weights is missing: {path}: put it beside the model, under this name"
        ) from None
    except OSError as error:
        raise _unusable(tensor, f"{path}: {error.strerror}") from None


def _size(tensor: onnx.TensorProto) -> int:
    """The bytes that the values of a tensor take."""
    kinds = {value: kind for kind, value in TensorProto.DataType.items()}
    kind = kinds.get(tensor.data_type, "UNDEFINED")
    if kind in ("UNDEFINED", "STRING") or min(tensor.dims, default=0) < 0:
        raise _unusable(tensor, f"{kind} of shape {tuple(tensor.dims)} cannot be in a file")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    bits = _BITS.get(kind, 8 * dtype.itemsize)
    size: int = math.prod(tensor.dims)
    return -(-bits * size // 8)


def _unusable(tensor: onnx.TensorProto, why: str) -> ModelFileError:
    return ModelFileError(f"its external weights are unusable: tensor {tensor.name!r}: {why}")
