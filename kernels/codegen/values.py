"""Values of a kernel under construction: integers, truth values and vectors, with operators.

An operator on them writes the instruction that computes it. A number that is known when the kernel
is built stays a Python number as long as possible.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.emit import Emitter, vector_type
from fastrun.kernels.core.dtype import BF16, F32, I16, I32, DType


@dataclass(frozen=True)
class Index:
    """An integer known only at run time, plus a constant.

    The constant is kept apart so that it becomes the displacement of an address.
    """

    k: Vectors
    ssa: str
    plus: int = 0

    def __add__(self, other: Int) -> Index:
        if isinstance(other, int):
            return Index(self.k, self.ssa, self.plus + other)
        both = self.k.emit(f"add nsw i64 {self.ssa}, {other.ssa}")
        return Index(self.k, both, self.plus + other.plus)

    def __sub__(self, other: Int) -> Index:
        return self + other * -1

    def __rsub__(self, other: int) -> Int:
        return self * -1 + other

    def __mul__(self, factor: Int) -> Int:
        if isinstance(factor, Index):
            return Index(self.k, self.k.emit(f"mul nsw i64 {self.value}, {factor.value}"))
        if factor in (0, 1):
            return self if factor else 0
        scaled = self.k.emit(f"mul nsw i64 {self.ssa}, {factor}")
        return Index(self.k, scaled, self.plus * factor)

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, divisor: int) -> Index:
        return self if divisor == 1 else self._apply("udiv", divisor)

    def __mod__(self, divisor: int) -> Int:
        return 0 if divisor == 1 else self._apply("urem", divisor)

    def __lt__(self, other: Int) -> Condition:
        return self._compare("slt", other)

    def __ge__(self, other: Int) -> Condition:
        return self._compare("sge", other)

    def equals(self, other: int) -> Condition:
        """Whether it is this number."""
        return (self >= other) & (self < other + 1)

    def min(self, other: Int) -> Index:
        """The smaller of the two."""
        return self._pick(self < other, other)

    def max(self, other: Int) -> Index:
        """The larger of the two."""
        return self._pick(self >= other, other)

    @property
    def value(self) -> str:
        """The whole sum as one SSA value."""
        return self.k.emit(f"add nsw i64 {self.ssa}, {self.plus}") if self.plus else self.ssa

    def _pick(self, mine: Condition, other: Int) -> Index:
        a, b = self.value, operand(other)
        return Index(self.k, self.k.emit(f"select i1 {mine.ssa}, i64 {a}, i64 {b}"))

    def _apply(self, instruction: str, operand: int) -> Index:
        return Index(self.k, self.k.emit(f"{instruction} i64 {self.value}, {operand}"))

    def _compare(self, predicate: str, other: Int) -> Condition:
        a, b = self.value, operand(other)
        return Condition(self.k, self.k.emit(f"icmp {predicate} i64 {a}, {b}"))


# An integer of the kernel: known when it is built, or only when it runs.
Int = Index | int


def least(a: Int, b: Int) -> Int:
    """The smaller of the two."""
    if isinstance(a, Index):
        return a.min(b)
    return b.min(a) if isinstance(b, Index) else min(a, b)


def most(a: Int, b: Int) -> Int:
    """The larger of the two."""
    if isinstance(a, Index):
        return a.max(b)
    return b.max(a) if isinstance(b, Index) else max(a, b)


@dataclass(frozen=True)
class Condition:
    """A truth value known only at run time."""

    k: Vectors
    ssa: str

    def __and__(self, other: Condition) -> Condition:
        return Condition(self.k, self.k.emit(f"and i1 {self.ssa}, {other.ssa}"))

    def __invert__(self) -> Condition:
        return Condition(self.k, self.k.emit(f"xor i1 {self.ssa}, true"))


@dataclass(frozen=True)
class Vec:
    """`lanes` values in a vector register; one lane is a plain number."""

    k: Vectors
    ssa: str
    lanes: int
    dtype: DType = F32

    def __add__(self, other: Vec | float) -> Vec:
        return self._apply(self._kind("add"), other)

    def __sub__(self, other: Vec | float) -> Vec:
        return self._apply(self._kind("sub"), other)

    def __mul__(self, other: Vec | float) -> Vec:
        return self._apply(self._kind("mul"), other)

    def __truediv__(self, other: Vec | float) -> Vec:
        return self._apply("fdiv", other)

    __radd__, __rmul__ = __add__, __mul__

    def max(self, least: Vec | float) -> Vec:
        """The larger of the two; a NaN in `self` stays."""
        return self._select("gt", least)

    def min(self, most: Vec | float) -> Vec:
        """The smaller of the two; a NaN in `self` stays."""
        return self._select("lt", most)

    def to(self, dtype: DType) -> Vec:
        """The same numbers as elements of another type.

        A float becomes an integer by rounding to nearest, ties to even; it must be in range. A
        narrower integer type keeps the lowest bits.
        """
        mine = self.dtype
        if dtype is mine:
            return self
        if mine.is_float and not dtype.is_float:
            return self.k.rounded(self).to(dtype)
        if mine.is_float:
            instruction = "fpext" if dtype.bits > mine.bits else "fptrunc"
        elif dtype.is_float:
            if mine.bits < 32:
                return self.to(I32).to(dtype)
            instruction = "sitofp"
        elif dtype.bits == mine.bits:
            return replace(self, dtype=dtype)
        elif dtype.bits < mine.bits:
            instruction = "trunc"
        else:
            instruction = "zext" if mine.name[0] == "u" else "sext"
        if dtype is BF16 and "+avx512bf16" not in self.k.cpu.features:
            return self.k.to_bf16(self)
        wanted = vector_type(self.lanes, dtype.llvm_name)
        text = f"{instruction} {self.type} {self.ssa} to {wanted}"
        return Vec(self.k, self.k.emit(text), self.lanes, dtype)

    def bits_as(self, dtype: DType) -> Vec:
        """The same bits as elements of another type, as many as the bits give."""
        lanes = self.lanes * self.dtype.bits // dtype.bits
        if (lanes, dtype.llvm_name) == (self.lanes, self.dtype.llvm_name):
            return replace(self, dtype=dtype)
        wanted = vector_type(lanes, dtype.llvm_name)
        text = f"bitcast {self.type} {self.ssa} to {wanted}"
        return Vec(self.k, self.k.emit(text), lanes, dtype)

    @property
    def type(self) -> str:
        """The LLVM type."""
        return vector_type(self.lanes, self.dtype.llvm_name)

    def _operand(self, other: Vec | float) -> str:
        return other.ssa if isinstance(other, Vec) else constant(other, self.lanes, self.dtype)

    def _apply(self, instruction: str, other: Vec | float) -> Vec:
        text = f"{instruction} {self.type} {self.ssa}, {self._operand(other)}"
        return Vec(self.k, self.k.emit(text), self.lanes, self.dtype)

    def _kind(self, instruction: str) -> str:
        return f"f{instruction}" if self.dtype.is_float else instruction

    def _select(self, predicate: str, other: Vec | float) -> Vec:
        k, bits = self.k, vector_type(self.lanes, "i1")
        operand = self._operand(other)
        sign = "u" if self.dtype.name[0] == "u" else "s"
        compare = f"fcmp o{predicate}" if self.dtype.is_float else f"icmp {sign}{predicate}"
        wins = k.emit(f"{compare} {self.type} {operand}, {self.ssa}")
        text = f"select {bits} {wins}, {self.type} {operand}, {self.type} {self.ssa}"
        return Vec(k, k.emit(text), self.lanes, self.dtype)


def fma(a: Vec, b: Vec, c: Vec) -> Vec:
    """a * b + c in one instruction, which does not depend on fast-math flags.

    Processors without this instruction would call a function for every lane. They multiply and add.
    """
    return a.k.intrinsic("fma", a, b, c) if a.k.cpu.fma else a * b + c


def constant(value: float, lanes: int, dtype: DType = F32) -> str:
    """A literal. LLVM writes a float constant as the bits of the equal double."""
    if dtype.is_float:
        bits = struct.unpack("<Q", struct.pack("<d", dtype.numpy.type(value)))[0]
        one = f"0x{bits:016X}"
    else:
        one = str(int(value))
    return one if lanes == 1 else "<" + ", ".join([f"{dtype.llvm_name} {one}"] * lanes) + ">"


def first_lanes(count: int, lanes: int) -> str:
    """A constant mask with the first `count` lanes set."""
    return "<" + ", ".join(f"i1 {int(i < count)}" for i in range(lanes)) + ">"


def operand(x: Int) -> str:
    """An integer as an operand of an instruction."""
    return str(x) if isinstance(x, int) else x.value


@functools.cache
def _intrinsic(name: str, lanes: int, dtype: DType, operands: int) -> tuple[str, str]:
    """The declaration of an intrinsic, and a call of it with %s in the place of operands."""
    kind = vector_type(lanes, dtype.llvm_name)
    symbol = f"llvm.{name}.{'' if lanes == 1 else f'v{lanes}'}{dtype.suffix}"
    types = ", ".join([kind] * operands)
    arguments = ", ".join([f"{kind} %s"] * operands)
    return f"declare {kind} @{symbol}({types})", f"call {kind} @{symbol}({arguments})"


class Vectors(Emitter):
    """Writes the instructions that make vectors."""

    def const(self, value: float, lanes: int = 0, dtype: DType = F32) -> Vec:
        """`value` in every lane."""
        lanes = lanes or self.lanes
        return Vec(self, constant(value, lanes, dtype), lanes, dtype)

    def literal(self, values: Sequence[float], dtype: DType = F32) -> Vec:
        """These numbers, one in each lane."""
        parts = ", ".join(f"{dtype.llvm_name} {constant(value, 1, dtype)}" for value in values)
        return Vec(self, f"<{parts}>", len(values), dtype)

    def splat(self, scalar: Vec, lanes: int = 0) -> Vec:
        """A one-lane value in every lane."""
        lanes = lanes or self.lanes
        if lanes == 1:
            return scalar
        kind = vector_type(lanes, scalar.dtype.llvm_name)
        one = self.emit(f"insertelement {kind} poison, {scalar.type} {scalar.ssa}, i32 0")
        text = f"shufflevector {kind} {one}, {kind} poison, <{lanes} x i32> zeroinitializer"
        return Vec(self, self.emit(text), lanes, scalar.dtype)

    def shuffle(self, a: Vec, b: Vec, order: Sequence[int]) -> Vec:
        """Lanes of a and b by number; those of b follow those of a."""
        if len(order) == 1:
            source, lane = (a, order[0]) if order[0] < a.lanes else (b, order[0] - a.lanes)
            text = f"extractelement {source.type} {source.ssa}, i32 {lane}"
            return Vec(self, self.emit(text), 1, a.dtype)
        mask = ", ".join(f"i32 {i}" for i in order)
        text = f"shufflevector {a.type} {a.ssa}, {b.type} {b.ssa}, <{len(order)} x i32> <{mask}>"
        return Vec(self, self.emit(text), len(order), a.dtype)

    def blend(self, mask: str, chosen: Vec, other: Vec) -> Vec:
        """`chosen` in the lanes of `mask`, `other` in the other lanes."""
        bits, kind = vector_type(chosen.lanes, "i1"), chosen.type
        text = f"select {bits} {mask}, {kind} {chosen.ssa}, {kind} {other.ssa}"
        return Vec(self, self.emit(text), chosen.lanes, chosen.dtype)

    def choose(self, condition: Condition, yes: Vec, no: Vec) -> Vec:
        """One of two vectors."""
        text = f"select i1 {condition.ssa}, {yes.type} {yes.ssa}, {no.type} {no.ssa}"
        return Vec(self, self.emit(text), yes.lanes, yes.dtype)

    def intrinsic(self, name: str, *operands: Vec) -> Vec:
        """An LLVM intrinsic with operands and result of one type."""
        lanes, dtype = operands[0].lanes, operands[0].dtype
        declaration, call = _intrinsic(name, lanes, dtype, len(operands))
        self.declare(declaration)
        return Vec(self, self.emit(call % tuple([v.ssa for v in operands])), lanes, dtype)

    def target(self, symbol: str, dtype: DType, lanes: int, *operands: Vec) -> Vec:
        """An instruction of the processor by the name of its intrinsic, with a result of `lanes`.

        The processor must have the instruction: LLVM gives up the process otherwise.
        """
        result = vector_type(lanes, dtype.llvm_name)
        self.declare(f"declare {result} @{symbol}({', '.join(v.type for v in operands)})")
        arguments = ", ".join(f"{v.type} {v.ssa}" for v in operands)
        return Vec(self, self.emit(f"call {result} @{symbol}({arguments})"), lanes, dtype)

    def rounded(self, x: Vec) -> Vec:
        """Floats as int32, rounded to nearest, ties to even; undefined outside of int32."""
        kind = "" if x.lanes == 1 else f"v{x.lanes}"
        return self.target(f"llvm.lrint.{kind}i32.{kind}{x.dtype.suffix}", I32, x.lanes, x)

    def to_bf16(self, x: Vec) -> Vec:
        """Float32 rounded to bfloat16, ties to even; a NaN may become infinite.

        Without an instruction for it LLVM would call a library function for every lane.
        """
        bits = x.bits_as(I32)
        odd = self.shifted(bits, "lshr", 16)
        one = self.const(1, x.lanes, I32)
        low = Vec(self, self.emit(f"and {odd.type} {odd.ssa}, {one.ssa}"), x.lanes, I32)
        high = self.shifted(bits + low + 0x7FFF, "lshr", 16)
        return high.to(I16).bits_as(BF16)

    def shifted(self, x: Vec, instruction: str, bits: int) -> Vec:
        """An integer vector shifted by so many bits: `shl`, `lshr` or `ashr`."""
        text = f"{instruction} {x.type} {x.ssa}, {constant(bits, x.lanes, x.dtype)}"
        return Vec(self, self.emit(text), x.lanes, x.dtype)
