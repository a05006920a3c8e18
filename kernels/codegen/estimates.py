"""Reciprocals and powers of two by the instructions that AVX-512 has for them.

A division occupies its unit for 16 cycles on Intel's cores, as long as 32 multiply-adds. An
estimate of the reciprocal with one step of Newton's method takes about three.
"""

from __future__ import annotations

from fastrun.kernels.codegen.builder import Vec, fma
from fastrun.kernels.codegen.dot import has
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32

_TO_NEAREST = "i32 4"  # rounding as the thread has set it

# Bits of the mask for a vector of so many lanes: eight at least.
_MASKS = {4: 8, 8: 8, 16: 16}


def known(x: Vec) -> bool:
    """Whether the processor has these instructions for vectors of this length."""
    return x.lanes in _MASKS and _has_avx512(x.k.cpu)


def _has_avx512(cpu: Cpu) -> bool:
    return has(cpu, "avx512vl") or cpu.name == "x86-64-v4"


def quotient(x: Vec | float, d: Vec) -> Vec:
    """x / d within two units in the last place, for d from 1 to infinity; NaN stays."""
    if known(d):
        inverse = _reciprocal(d)
        return inverse if x == 1.0 else inverse * x
    return (x if isinstance(x, Vec) else d.k.const(x, d.lanes)) / d


def _reciprocal(d: Vec) -> Vec:
    """1 / d within one unit in the last place."""
    one = d.k.const(1.0, d.lanes)
    first = _call("rcp14.ps", d, d, d.k.const(0.0, d.lanes), rest="")
    # The error of the estimate is below 2^-14. That of infinity is NaN, and becomes a number.
    error = d.k.const(-1.0, d.lanes).max(fma(d * -1.0, first, one))
    return fma(first, error, first)


def scaled(x: Vec, n: Vec) -> Vec:
    """x * 2^n, rounded once. Only where this is `known`."""
    return _call("mask.scalef.ps", x, x, n, x, rest=_TO_NEAREST)


def _call(name: str, like: Vec, *operands: Vec, rest: str) -> Vec:
    """One of AVX-512's instructions on all lanes; only the widest is told how to round."""
    k, bits = like.k, _MASKS[like.lanes]
    symbol = f"llvm.x86.avx512.{name}.{like.lanes * F32.bits}"
    more = [f"i{bits} -1", *([rest] if rest and like.lanes == 16 else [])]
    kinds = [*(v.type for v in operands), *(text.split()[0] for text in more)]
    k.declare(f"declare {like.type} @{symbol}({', '.join(kinds)})")
    values = [*(f"{v.type} {v.ssa}" for v in operands), *more]
    return Vec(k, k.emit(f"call {like.type} @{symbol}({', '.join(values)})"), like.lanes)
