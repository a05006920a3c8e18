"""Instructions on tile registers (AMX): eight matrices of at most 16 rows of 64 bytes.

A product of bytes adds to each of 16 x 16 sums of 32 bits the products of 64 pairs of bytes, one of
bf16 those of 32 pairs. The second operand has its rows in groups: four of bytes, or two of bf16,
lie side by side. The registers have fixed numbers, and what is between `configure` and `release`
must not call functions that use them too (Intel, Software Developer's Manual, volume 1, chapter
18).
"""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.kernels.codegen.builder import Int, Kernel

REGISTERS, ROWS, ROW_BYTES = 8, 16, 64

BYTES, HALVES = "tdpbusd", "tdpbf16ps"
"""Products of u8 with s8 into int32, and of bf16 into float32."""

NEEDS = {BYTES: "amx-int8", HALVES: "amx-bf16"}
"""LLVM's features that have the products."""

_PALETTE = 1


def configure(k: Kernel, shapes: Sequence[tuple[int, int]]) -> None:
    """Give the registers their rows and bytes per row, and clear them."""
    rows = bytes(r for r, _ in shapes).ljust(16, b"\0")
    widths = b"".join(b.to_bytes(2, "little") for _, b in shapes).ljust(32, b"\0")
    data = bytes([_PALETTE]).ljust(16, b"\0") + widths + rows
    name = "@tiles." + "_".join(f"{r}x{b}" for r, b in shapes)
    text = "".join(f"\\{byte:02X}" for byte in data)
    k.declare(f'{name} = private constant [64 x i8] c"{text}", align 64')
    _call(k, "ldtilecfg", f"ptr {name}")


def release(k: Kernel) -> None:
    """Give the registers back: their content need not be saved any more."""
    _call(k, "tilerelease")


def zero(k: Kernel, tile: int) -> None:
    """Fill a register with zeros."""
    _call(k, "tilezero", f"i8 {tile}")


def load(k: Kernel, tile: int, address: str, stride: Int, stream: bool = False) -> None:
    """Fill a register with rows that are `stride` bytes apart.

    What is said to `stream` leaves L1 first, so that other data stays there.
    """
    name = "tileloaddt164" if stream else "tileloadd64"
    _call(k, name, f"i8 {tile}", f"ptr {address}", _stride(k, stride))


def store(k: Kernel, tile: int, address: str, stride: Int) -> None:
    """Store the rows of a register `stride` bytes apart."""
    _call(k, "tilestored64", f"i8 {tile}", f"ptr {address}", _stride(k, stride))


def multiply(k: Kernel, product: str, sums: int, a: int, b: int) -> None:
    """Add the products of two registers to the sums in a third."""
    _call(k, product, f"i8 {sums}", f"i8 {a}", f"i8 {b}")


def _stride(k: Kernel, stride: Int) -> str:
    return f"i64 {stride if isinstance(stride, int) else stride.value}"


def _call(k: Kernel, name: str, *operands: str) -> None:
    kinds = ", ".join(text.split()[0] for text in operands)
    k.declare(f"declare void @llvm.x86.{name}({kinds})")
    k.emit_void(f"call void @llvm.x86.{name}({', '.join(operands)})")
