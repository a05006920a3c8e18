"""Small ONNX models for the tests of the graph package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Weights = Mapping[str, NDArray[np.generic]]


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """A node called like its first output; names are separated by blanks, "_" is absent."""
    names = ["" if x == "_" else x for x in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=outputs.split()[0], **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Weights | None = None,
    *,
    shape: Sequence[int | str] = (1, 4, 8, 8),
    output: str = "y",
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model from input "x" to `output`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Seeded normal values."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def batch_norm(c: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Parameters scale, shift, mean, variance for `c` channels."""
    rng = np.random.default_rng(seed)
    return {
        "scale": rng.uniform(0.5, 1.5, c).astype(np.float32),
        "shift": normal(c, seed=seed + 1),
        "mean": normal(c, seed=seed + 2),
        "variance": rng.uniform(0.5, 1.5, c).astype(np.float32),
    }
