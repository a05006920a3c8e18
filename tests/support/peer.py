"""Results of onnxruntime, the standard for the meaning of operators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

from fastrun.graph.core.model import Array
from tests.support.agreement import assert_close


def by_onnxruntime(
    m: onnx.ModelProto | bytes, feeds: Mapping[str, Array]
) -> dict[str, Array] | None:
    """The outputs of a model as it stands, on one thread; None if it is refused."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.set_default_logger_severity(4)
    try:
        data = m if isinstance(m, bytes) else m.SerializeToString()
        session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
        results = session.run(None, feeds)
    except Exception:  # its exceptions have no class in common
        return None
    return {v.name: np.asarray(a) for v, a in zip(session.get_outputs(), results, strict=True)}


def assert_same(found: dict[str, Array], truth: dict[str, Array], what: str = "") -> None:
    """Equal shapes, and values equal to rounding."""
    for name, expected in truth.items():
        assert_close(found[name], expected, what)
