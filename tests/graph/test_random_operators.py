"""Operators drawn at random against onnxruntime: the same values, or a refusal that is known.

`FASTRUN_TEST_SCALE=100 pytest tests/graph/test_random_operators.py` draws a hundred times as many.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import fastrun
from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Array
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run
from tests.support.peer import assert_same, by_onnxruntime
from tests.support.random_operators import DRAWN, Draw, drawn

SCALE = int(os.environ.get("FASTRUN_TEST_SCALE", "1"))
INTERPRETED, NATIVE = 12 * SCALE, SCALE

# Parts of the messages with which we refuse operators that onnxruntime computes.
REFUSED = (
    "is empty",
    "does not fit into",  # a window larger than what it slides over; its division rounds to zero
    "windows each of which has a pixel",
    "as strides exceed the kernel",  # SAME with gaps between windows, on which engines differ
    "constant padding by",  # that crops more than there is, and so some of its own padding
    "'n/Mul",  # LayerNormalization with a scale of fewer axes
    "its operands do not fit",  # PRelu with a slope that makes x larger
)


def examine(draw: Draw, native: bool) -> bool:
    """Whether the drawn operator is computed and not refused; its results must be right."""
    m, what, refusal = draw.model(), f"opset {draw.opset}, {draw.nodes}", ""
    truth = by_onnxruntime(m, draw.inputs)
    found: list[dict[str, Array]] = []
    try:
        graph = import_onnx(m)
        graph.check_supported()
        with np.errstate(all="ignore"):
            found = [run(g, draw.inputs) for g in (graph, optimise(graph))]
        if native:
            found.append(fastrun.load(m, policy="heuristic").run(draw.inputs))
    except GraphError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        known = any(reason in refusal for reason in REFUSED)
        assert truth is None or known, f"{refusal}: {what}"
    for results in found:
        assert_same(results, truth or found[0], what)
    return not refusal


@pytest.mark.parametrize("name", DRAWN)
def test_drawn(name: str) -> None:
    computed = [examine(drawn(name, seed), seed < NATIVE) for seed in range(INTERPRETED)]
    assert sum(computed) > len(computed) // 3
