"""Quantised models: written by onnxruntime's quantiser, or by hand; and their exact results."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from fastrun.graph.core.model import Array

BYTE, SIGNED = QuantType.QUInt8, QuantType.QInt8


class _Once(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Mapping[str, Array]) -> None:
        self._left: Iterator[Mapping[str, Array]] = iter([feeds])

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._left, None)


def quantised(
    m: onnx.ModelProto, feeds: Mapping[str, Array], folder: Path, draw: random.Random
) -> onnx.ModelProto:
    """The model as onnxruntime's quantiser writes it, in a form and with types drawn at random."""
    logging.disable(logging.WARNING)
    path = folder / "quantised.onnx"
    form = draw.choice([QuantFormat.QDQ, QuantFormat.QDQ, QuantFormat.QOperator])
    activation = draw.choice([BYTE, SIGNED])
    try:
        quantize_static(
            m,
            path,
            _Once(feeds),
            quant_format=form,
            activation_type=activation,
            weight_type=BYTE if activation == BYTE and draw.random() < 0.3 else SIGNED,
            per_channel=draw.random() < 0.6,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(path)


def exact(m: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs as onnxruntime computes them without saturation and without fusing anything."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(m.SerializeToString(), options, ["CPUExecutionProvider"])
    results = session.run(None, dict(feeds))
    return {v.name: np.asarray(a) for v, a in zip(session.get_outputs(), results, strict=True)}


def model(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, Any],
    shape: tuple[int, ...] = (1, 4, 6, 6),
    *,
    dtype: int = TensorProto.FLOAT,
    opset: int = 21,
) -> onnx.ModelProto:
    """A model from "x" to "y", with operators of onnxruntime's own too."""
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def layer(**changed: Any) -> onnx.ModelProto:
    """A quantised convolution: QDQ, 8 bits, a scale per channel; constants may be others."""
    draw = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "xs": np.float32(0.02),
        "xz": np.uint8(117),
        "w": draw.integers(-127, 128, (5, 4, 3, 3)).astype(np.int8),
        "ws": draw.uniform(0.005, 0.02, 5).astype(np.float32),
        "wz": np.zeros(5, np.int8),
        "b": draw.integers(-2000, 2000, 5).astype(np.int32),
        "bs": np.float32(0.02) * draw.uniform(0.005, 0.02, 5).astype(np.float32),
        "bz": np.zeros(5, np.int32),
        "ys": np.float32(0.1),
        "yz": np.uint8(100),
    }
    attributes = {"axis": changed.pop("axis", 0)}
    return model(
        [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "q"),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "d"),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "dw", **attributes),
            helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], "db", axis=0),
            helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"], "relu"),
            helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["rq"], "qy"),
            helper.make_node("DequantizeLinear", ["rq", "ys", "yz"], ["y"], "dy"),
        ],
        constants | changed,
    )
