"""Memory of a kernel under construction: strided arrays, and tiles that end up in registers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.values import Index, Int, Vec, Vectors, constant, first_lanes
from fastrun.kernels.core.dtype import F32, DType
from fastrun.kernels.core.layout import Placement


@dataclass(frozen=True)
class Buffer:
    """A strided array. Strides are in elements and known at build time."""

    k: Vectors
    base: str
    strides: tuple[int, ...]
    dtype: DType = F32

    def at(self, *index: Int) -> Buffer:
        """The same array, re-based at `index`; missing trailing indices are 0."""
        return Buffer(self.k, self.address(*index), self.strides, self.dtype)

    def strided(self, *strides: int) -> Buffer:
        """The same address seen through other strides."""
        return Buffer(self.k, self.base, strides, self.dtype)

    def opaque(self) -> Buffer:
        """The same array at an address that LLVM cannot trace.

        Loads through it are neither moved out of loops nor merged with earlier ones. A value is
        then read again, where keeping it would take a register.
        """
        text = f'call ptr asm sideeffect "", "=r,0"(ptr {self.base})'
        return replace(self, base=self.k.emit(text))

    def after(self, value: Vec) -> Buffer:
        """The same array at an address that, for LLVM, depends on `value`.

        LLVM then schedules no load through it before `value` is computed, which limits the
        registers that unrolled steps need. The processor sees no dependency.
        """
        if value.lanes == 2:  # no register class of x86
            value = self.k.shuffle(value, value, [0])
        kind, operand = _for_assembly(value)
        text = f'call ptr asm "", "=r,0,{kind}"(ptr {self.base}, {operand})'
        return replace(self, base=self.k.emit(text))

    def __getitem__(self, i: Int) -> Buffer:
        """One slice along the first axis."""
        return Buffer(self.k, self.address(i), self.strides[1:], self.dtype)

    def load(self, *index: Int, lanes: int = 0) -> Vec:
        """`lanes` elements side by side, by default a whole register."""
        lanes = lanes or self.k.lanes
        text = f"load {self._vector(lanes)}, ptr {self.address(*index)}, align {self.dtype.bytes()}"
        return Vec(self.k, self.k.emit(text), lanes, self.dtype)

    def index(self, *index: Int) -> Index:
        """An int32 that lies in place of an element."""
        word = self.k.emit(f"load i32, ptr {self.address(*index)}, align 4")
        return Index(self.k, self.k.emit(f"sext i32 {word} to i64"))

    def store_index(self, value: Index, *index: Int) -> None:
        """Store an integer as an int32 in place of an element."""
        word = self.k.emit(f"trunc i64 {value.value} to i32")
        self.k.emit_void(f"store i32 {word}, ptr {self.address(*index)}, align 4")

    def load_strided(self, *index: Int, step: int, lanes: int = 0) -> Vec:
        """Every `step`-th element, `lanes` of them; reads to the end of the last step."""
        lanes = lanes or self.k.lanes
        if step == 1 or lanes == 1:
            return self.load(*index, lanes=lanes)
        wide = self.load(*index, lanes=lanes * step)
        mask = ", ".join(f"i32 {i * step}" for i in range(lanes))
        kind = wide.type
        text = f"shufflevector {kind} {wide.ssa}, {kind} poison, <{lanes} x i32> <{mask}>"
        return Vec(self.k, self.k.emit(text), lanes, self.dtype)

    def splat(self, *index: Int, lanes: int = 0) -> Vec:
        """One element in every lane."""
        return self.k.splat(self.load(*index, lanes=1), lanes)

    def store(self, value: Vec, *index: Int) -> None:
        """Store all lanes."""
        address = self.address(*index)
        align = value.dtype.bytes()
        self.k.emit_void(f"store {value.type} {value.ssa}, ptr {address}, align {align}")

    def store_first(self, value: Vec, count: int, *index: Int) -> None:
        """Store the first `count` lanes and touch nothing behind them.

        It stores pieces of 2^n lanes: a masked store costs more than three of these.
        """
        if count >= value.lanes:
            self.store(value, *index)
            return
        target, done = self.at(*index).strided(1), 0
        for piece in (1 << i for i in reversed(range(count.bit_length()))):
            if count & piece:
                target.store(self.k.shuffle(value, value, range(done, done + piece)), done)
                done += piece

    def load_first(self, count: int, *index: Int, lanes: int = 0) -> Vec:
        """The first `count` lanes, then zeros; reads nothing else."""
        lanes = lanes or self.k.lanes
        if count >= lanes:
            return self.load(*index, lanes=lanes)
        address, kind, bits = self.address(*index), self._vector(lanes), vector_type(lanes, "i1")
        name = f"llvm.masked.load.v{lanes}{self.dtype.suffix}.p0"
        self.k.declare(f"declare {kind} @{name}(ptr, {bits}, {kind})")
        text = (
            f"call {kind} @{name}(ptr align {self.dtype.bytes()} {address}, "
            f"{bits} {first_lanes(count, lanes)}, {kind} {constant(0.0, lanes, self.dtype)})"
        )
        return Vec(self.k, self.k.emit(text), lanes, self.dtype)

    def load_some(self, count: int, *index: Int, lanes: int) -> Vec:
        """The first `count` lanes; the others are undefined. It may read a whole vector.

        Elements of less than 32 bits are not masked, which takes AVX-512.
        """
        if self.dtype.bits < F32.bits:
            return self.load(*index, lanes=lanes)
        return self.load_first(count, *index, lanes=lanes)

    def prefetch(self, *index: Int, level: int = 1, write: bool = False) -> None:
        """Bring the cache line into L`level`, for a `write` if so; never faults."""
        self.k.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        arguments = f"ptr {self.address(*index)}, i32 {int(write)}, i32 {4 - level}, i32 1"
        self.k.emit_void(f"call void @llvm.prefetch.p0({arguments})")

    def address(self, *index: Int) -> str:
        """The pointer to one element, as an SSA value."""
        offset: Int = 0
        for i, stride in zip(index, self.strides, strict=False):
            offset = i * stride + offset
        if isinstance(offset, int):
            return self._step(self.base, offset)
        return self._step(self._step(self.base, offset.ssa), offset.plus)

    def _step(self, base: str, elements: str | int) -> str:
        if elements == 0:
            return base
        kind = self.dtype.llvm_name
        return self.k.emit(f"getelementptr inbounds {kind}, ptr {base}, i64 {elements}")

    def _vector(self, lanes: int) -> str:
        return vector_type(lanes, self.dtype.llvm_name)


def _for_assembly(value: Vec) -> tuple[str, str]:
    """How inline assembly takes a vector: the kind of register, and the vector with its type."""
    k, kind = value.k, value.dtype
    if k.cpu.machine != "riscv64":
        return "v" if k.cpu.machine == "x86_64" else "w", f"{value.type} {value.ssa}"
    if value.lanes == 1:
        return "f" if kind.is_float else "r", f"{value.type} {value.ssa}"
    # LLVM gives RISC-V's vector registers only to types whose length is that of registers.
    count = max(64 // kind.bits, 2 * value.lanes // k.lanes)
    whole = f"<vscale x {count} x {kind.llvm_name}>"
    name = f"llvm.vector.insert.nxv{count}{kind.suffix}.v{value.lanes}{kind.suffix}"
    k.declare(f"declare {whole} @{name}({whole}, {value.type}, i64)")
    put = f"call {whole} @{name}({whole} poison, {value.type} {value.ssa}, i64 0)"
    return "^vr", f"{whole} {k.emit(put)}"


class Tile:
    """A rows x cols block of vector registers.

    Cells are stack slots in the IR. LLVM's mem2reg turns each one into a register, so that loops
    need no explicit phi nodes.
    """

    def __init__(self, k: Vectors, rows: int, cols: int, lanes: int, dtype: DType = F32) -> None:
        self.k, self.rows, self.cols, self.lanes, self.dtype = k, rows, cols, lanes, dtype
        self._type, self._align = vector_type(lanes, dtype.llvm_name), dtype.bytes()
        self._slots = {(i, j): k.slot(lanes, 1, dtype) for i in range(rows) for j in range(cols)}

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._slots)

    def __getitem__(self, cell: tuple[int, int]) -> Vec:
        text = f"load {self._type}, ptr {self._slots[cell]}, align {self._align}"
        return Vec(self.k, self.k.emit(text), self.lanes, self.dtype)

    def __setitem__(self, cell: tuple[int, int], value: Vec) -> None:
        slot = self._slots[cell]
        self.k.emit_void(f"store {self._type} {value.ssa}, ptr {slot}, align {self._align}")

    def fill(self, value: Vec) -> None:
        """The same value in every cell."""
        for cell in self:
            self[cell] = value


def at_channel(tensor: Buffer, where: Placement, index: Int, unit: int) -> Buffer:
    """`tensor` (as made by `Kernel.tensor`) re-based at channel `index * unit`.

    `unit` and the placement's channel block divide each other, or there is one block.

    Raises:
        ValueError: they do not.
    """
    block = where.block
    if where.blocks == 1 or index == 0:
        return tensor.at(0, 0, 0, 0, index * unit)
    if unit % block == 0:
        return tensor.at(0, index * (unit // block))
    if block % unit:
        raise ValueError(f"channel blocks of {block} cannot be cut into units of {unit}")
    per = block // unit
    return tensor.at(0, index // per, 0, 0, index % per * unit)
