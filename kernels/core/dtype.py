"""Element types of tensors: their size, and their names in LLVM and numpy."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a problem's text needs no numpy
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class DType:
    """An element type. `name` is short; LLVM has no unsigned types, numpy no bfloat16.

    Elements of type bf16 are kept in numpy as the uint16 of the same bits.
    """

    name: str
    bits: int
    numpy_name: str
    llvm_name: str

    def __hash__(self) -> int:
        # A hash of all fields would take longer than what is looked up by it.
        return hash(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        # Types are compared by identity, also in processes that receive them.
        return _known, (self.name, self.bits, self.numpy_name, self.llvm_name)

    @functools.cached_property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type of one element."""
        import numpy as np

        return np.dtype(self.numpy_name)

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point type."""
        return self.llvm_name[0] != "i"

    @property
    def suffix(self) -> str:
        """The name that LLVM's intrinsics use."""
        return self.name if self.is_float else self.llvm_name

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest number of an integer type."""
        half = 1 << (self.bits - 1)
        return (0, 2 * half - 1) if self.name[0] == "u" else (-half, half - 1)

    def bytes(self, count: int = 1) -> int:
        """Bytes of `count` elements, which begin on a whole byte."""
        return -(-count * self.bits // 8)

    def count(self, size: int) -> int:
        """Elements that fit into `size` bytes."""
        return 8 * size // self.bits

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Numbers as elements of this type, which are rounded to nearest, ties to even."""
        import numpy as np

        if self is BF16:
            bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
            return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        return values.astype(self.numpy)

    def decode(self, elements: NDArray[Any]) -> NDArray[Any]:
        """The numbers that elements of this type stand for."""
        import numpy as np

        if self is BF16:
            return (elements.astype(np.uint32) << 16).view(np.float32)
        return elements


F32 = DType("f32", 32, "float32", "float")
F16 = DType("f16", 16, "float16", "half")
BF16 = DType("bf16", 16, "uint16", "bfloat")
I64 = DType("i64", 64, "int64", "i64")
I32 = DType("i32", 32, "int32", "i32")
I16 = DType("i16", 16, "int16", "i16")
S8 = DType("s8", 8, "int8", "i8")
U8 = DType("u8", 8, "uint8", "i8")

BY_NAME = {dtype.name: dtype for dtype in (F32, F16, BF16, I64, I32, I16, S8, U8)}


def _known(*fields: Any) -> DType:
    found = DType(*fields)
    known = BY_NAME.get(found.name)
    return known if known is not None and known == found else found
