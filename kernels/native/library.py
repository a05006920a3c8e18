"""Machine code of one kernel, loaded into the process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import llvmlite.binding as llvm

from fastrun.kernels.core.forks import ONCE, once
from fastrun.kernels.core.tiles import permitted


class Library:
    """An object loaded into this process. Addresses are valid while the library lives."""

    _numbers = itertools.count()

    def __init__(self, payload: bytes, symbols: Sequence[str]) -> None:
        builder = llvm.JITLibraryBuilder().add_object_img(payload).add_current_process()
        for symbol in symbols:
            builder.export_symbol(symbol)
        with ONCE:
            self._tracker = builder.link(_jit(), f"library{next(Library._numbers)}")

    def address(self, symbol: str) -> int:
        """The address of an exported function."""
        return int(self._tracker[symbol])


@once
def _jit() -> llvm.LLJIT:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    permitted()  # code for a `Cpu` of another process's may use tiles
    return llvm.create_lljit_compiler()
