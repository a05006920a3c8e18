"""The text of a function under construction: instructions, stack slots, declarations."""

from __future__ import annotations

from fastrun.kernels.core.cpu import CACHE_LINE, Cpu
from fastrun.kernels.core.dtype import F32, DType


def vector_type(lanes: int, element: str = F32.llvm_name) -> str:
    """The LLVM type of a vector; a vector of one lane is just the element."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


class Emitter:
    """Lines of LLVM IR, in order; `declarations` are those of the whole module."""

    def __init__(self, cpu: Cpu, declarations: dict[str, None]) -> None:
        self.cpu, self.lanes = cpu, cpu.lanes
        self._declarations = declarations
        self._slots: list[str] = []
        self._lines: list[str] = []
        self._count = 0
        self._block = "body"

    def slot(self, lanes: int, count: int = 1, dtype: DType = F32) -> str:
        """Stack room for `count` vectors, as a pointer."""
        name = f"%slot{len(self._slots)}"
        kind = vector_type(lanes, dtype.llvm_name)
        array = kind if count == 1 else f"[{count} x {kind}]"
        self._slots.append(f"  {name} = alloca {array}, align {CACHE_LINE}")
        return name

    def emit(self, text: str) -> str:
        """Append an instruction with a result; returns the result's name."""
        self._count += 1
        name = f"%v{self._count}"
        self._lines.append(f"  {name} = {text}")
        return name

    def emit_void(self, text: str) -> None:
        """Append an instruction without a result."""
        self._lines.append(f"  {text}")

    def declare(self, line: str) -> None:
        """Declare an external function once."""
        self._declarations[line] = None

    def _fresh(self) -> int:
        self._count += 1
        return self._count

    def _start(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self._block = label
