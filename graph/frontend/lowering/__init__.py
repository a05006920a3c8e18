"""Lowers ONNX operators to ours: one function for each operator, for every opset since 7.

The function reads a `Site`, one ONNX node whose output shapes are known, and emits our nodes.
"""

from __future__ import annotations

from fastrun.graph.frontend.lowering import arithmetic, movement, recurrent, scaling, windows
from fastrun.graph.frontend.lowering.site import Site, Unsupported, lower

__all__ = [
    "Site",
    "Unsupported",
    "arithmetic",
    "lower",
    "movement",
    "recurrent",
    "scaling",
    "windows",
]
