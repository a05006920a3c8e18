"""ONNX operators as ours: one function per operator, for every opset since 7.

Each reads a `Site`, one ONNX node whose output shapes are known, and emits nodes of ours.
"""

from __future__ import annotations

from fastrun.graph.frontend.lowering import arithmetic, movement, scaling, windows
from fastrun.graph.frontend.lowering.site import Site, Unsupported, lower

__all__ = ["Site", "Unsupported", "arithmetic", "lower", "movement", "scaling", "windows"]
