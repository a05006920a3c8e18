"""Element types of tensors: their size, and their names in LLVM and numpy."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a problem's text needs no numpy
    import numpy as np


@dataclass(frozen=True)
class DType:
    """An element type. `name` is short and also the suffix that LLVM's intrinsics use."""

    name: str
    bits: int
    numpy_name: str
    llvm_name: str

    @functools.cached_property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type of one element."""
        import numpy as np

        return np.dtype(self.numpy_name)

    def bytes(self, count: int = 1) -> int:
        """Bytes of `count` elements, which begin on a whole byte."""
        return -(-count * self.bits // 8)

    def count(self, size: int) -> int:
        """Elements that fit into `size` bytes."""
        return 8 * size // self.bits


F32 = DType("f32", 32, "float32", "float")
