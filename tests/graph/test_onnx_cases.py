"""Some of the onnx package's cases, of operators without a kernel; `test_onnx_backend` has all."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.backend.test.case.test_case import TestCase as NodeCase

from fastrun.graph.onnx_backend import Backend
from tests.support.onnx_cases import cases_of

# Modules of the cases, called like the operators.
NAMES = """
and_ argmax bitshift compress cumsum einsum equal gatherelements gathernd gridsample gru if_ isnan
loop lstm mod nonmaxsuppression nonzero onehot reversesequence roialign scan scatterelements
scatternd tile topk trilu unique where
"""


def _cases() -> list[NodeCase]:
    found = []
    for name in NAMES.split():
        for case in cases_of(name):
            assert case.model is not None
            first = case.model.graph.node[0].op_type
            left_out = "_expanded" in case.name or case.name == "test_scan_sum"  # of opset 8
            if first.lower() == name.rstrip("_") and not left_out:
                found.append(case)
    return sorted(found, key=lambda case: case.name)[::2]


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.name)
def test_case(case: NodeCase) -> None:
    assert case.model is not None
    assert case.data_sets is not None
    inputs, outputs = case.data_sets[0]
    if any(isinstance(x, list) for x in inputs) or "opt" in case.name:
        pytest.skip("sequences are no inputs")
    found = Backend.prepare(case.model).run(inputs)
    for one, other in zip(found, outputs, strict=True):
        if isinstance(other, list):
            assert len(one) == len(other)
        elif np.asarray(other).dtype.kind in "biufc":
            np.testing.assert_allclose(one, other, rtol=max(case.rtol, 1e-3), atol=1e-5)
        else:
            assert (one == other).all()
