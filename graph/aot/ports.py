"""What a caller gives to an exported network and gets from it: names, shapes, element types."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.lookups import indices
from fastrun.graph.core.model import Graph
from fastrun.kernels.core.dtype import DType
from fastrun.kernels.ops.convert import BY_NUMPY_NAME

_C_NAMES = {
    "float32": "float", "float64": "double", "float16": "uint16_t", "bfloat16": "uint16_t",
    "bool": "uint8_t",
}  # fmt: skip


@dataclass(frozen=True)
class Outer:
    """An input or output as the caller has it: `type` is the element type's name in numpy.

    Integers that are drawn to check a library are below `limit`.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    limit: int = 128

    @property
    def dtype(self) -> DType:
        """The element type in memory.

        Raises:
            KeyError: a caller cannot have it.
        """
        return BY_NUMPY_NAME[self.type]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def c_type(self) -> str:
        """The type in C, which has no halves: they are the integers of the same bits."""
        return _C_NAMES.get(self.type, f"{self.type}_t")

    def numbers(self, elements: NDArray[np.generic]) -> NDArray[np.float64]:
        """What elements in memory stand for."""
        return self.dtype.decode(elements).astype(np.float64)

    def drawn(self, draw: np.random.Generator) -> NDArray[np.generic]:
        """Normal numbers in this type; bytes and other integers from 0 to below `limit`."""
        if not self.dtype.is_float:
            return draw.integers(0, self.limit, self.shape).astype(self.dtype.numpy)
        return self.dtype.encode(draw.standard_normal(self.shape, np.float32))


def outer(graph: Graph, name: str) -> Outer:
    """An input or output of a graph."""
    kind = graph.outside.get(name, np.dtype(np.float32)).name
    known = indices(graph).get(name)
    limit = 2 if kind == "bool" else known.high + 1 if known else 128
    return Outer(name, kind, graph.shape(name), min(limit, 128))


def inputs(graph: Graph) -> list[Outer]:
    """The inputs that are read."""
    return [outer(graph, x) for x in graph.inputs]


def outputs(graph: Graph) -> list[Outer]:
    """The outputs that are computed."""
    return [outer(graph, x) for x in graph.outputs if x not in graph.constants]
