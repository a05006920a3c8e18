"""Memory of a kernel under construction: strided arrays, and tiles that end up in registers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.values import Index, Int, Vec, Vectors, constant, first_lanes
from fastrun.kernels.core.layout import Placement


@dataclass(frozen=True)
class Buffer:
    """A strided float32 array. Strides are in floats and known at build time."""

    k: Vectors
    base: str
    strides: tuple[int, ...]

    def at(self, *index: Int) -> Buffer:
        """The same array, re-based at `index`; missing trailing indices are 0."""
        return replace(self, base=self.address(*index))

    def strided(self, *strides: int) -> Buffer:
        """The same address seen through other strides."""
        return replace(self, strides=strides)

    def opaque(self) -> Buffer:
        """The same array at an address that LLVM cannot follow.

        Loads through it are neither hoisted out of loops nor merged with earlier ones: a value
        is read again where keeping it would cost a register.
        """
        text = f'call ptr asm sideeffect "", "=r,0"(ptr {self.base})'
        return replace(self, base=self.k.emit(text))

    def after(self, value: Vec) -> Buffer:
        """The same array at an address that LLVM knows only once it has computed `value`.

        Loads through it are not scheduled before that, which bounds the registers that unrolled
        steps need; the processor sees no dependency.
        """
        if value.lanes == 2:  # no register class of x86
            value = self.k.shuffle(value, value, [0])
        kind = "v" if self.k.cpu.triple.startswith("x86_64") else "w"
        text = f'call ptr asm "", "=r,0,{kind}"(ptr {self.base}, {value.type} {value.ssa})'
        return replace(self, base=self.k.emit(text))

    def __getitem__(self, i: Int) -> Buffer:
        """One slice along the first axis."""
        return Buffer(self.k, self.address(i), self.strides[1:])

    def load(self, *index: Int, lanes: int = 0) -> Vec:
        """`lanes` consecutive floats (a whole register unless said)."""
        lanes = lanes or self.k.lanes
        address = self.address(*index)
        return Vec(self.k, self.k.emit(f"load {vector_type(lanes)}, ptr {address}, align 4"), lanes)

    def index(self, *index: Int) -> Index:
        """An int32 that lies in place of a float."""
        word = self.k.emit(f"load i32, ptr {self.address(*index)}, align 4")
        return Index(self.k, self.k.emit(f"sext i32 {word} to i64"))

    def load_strided(self, *index: Int, step: int, lanes: int = 0) -> Vec:
        """Every `step`-th float, `lanes` of them; reads to the end of the last step."""
        lanes = lanes or self.k.lanes
        if step == 1 or lanes == 1:
            return self.load(*index, lanes=lanes)
        wide = self.load(*index, lanes=lanes * step)
        mask = ", ".join(f"i32 {i * step}" for i in range(lanes))
        kind = wide.type
        text = f"shufflevector {kind} {wide.ssa}, {kind} poison, <{lanes} x i32> <{mask}>"
        return Vec(self.k, self.k.emit(text), lanes)

    def splat(self, *index: Int, lanes: int = 0) -> Vec:
        """One float in every lane."""
        return self.k.splat(self.load(*index, lanes=1), lanes)

    def store(self, value: Vec, *index: Int) -> None:
        """Store all lanes."""
        address = self.address(*index)
        self.k.emit_void(f"store {value.type} {value.ssa}, ptr {address}, align 4")

    def store_first(self, value: Vec, count: int, *index: Int) -> None:
        """Store the first `count` lanes and touch nothing behind them.

        In pieces of a power of two: a masked store costs more than the three of them.
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
        """The first `count` lanes, zeros behind; reads nothing else."""
        lanes = lanes or self.k.lanes
        if count >= lanes:
            return self.load(*index, lanes=lanes)
        address, kind, bits = self.address(*index), vector_type(lanes), vector_type(lanes, "i1")
        name = f"llvm.masked.load.v{lanes}f32.p0"
        self.k.declare(f"declare {kind} @{name}(ptr, {bits}, {kind})")
        text = (
            f"call {kind} @{name}(ptr align 4 {address}, {bits} {first_lanes(count, lanes)}, "
            f"{kind} {constant(0.0, lanes)})"
        )
        return Vec(self.k, self.k.emit(text), lanes)

    def prefetch(self, *index: Int, level: int = 1, write: bool = False) -> None:
        """Bring the line towards L`level`, to be written if so said; never faults."""
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
        moved = self.k.emit(f"getelementptr inbounds float, ptr {self.base}, i64 {offset.ssa}")
        return self._step(moved, offset.plus)

    def _step(self, base: str, floats: int) -> str:
        if floats == 0:
            return base
        return self.k.emit(f"getelementptr inbounds float, ptr {base}, i64 {floats}")


class Tile:
    """A rows x cols block of vector registers.

    Cells are stack slots in the IR; LLVM's mem2reg turns every one into a register,
    which is why loops need no explicit phi nodes.
    """

    def __init__(self, k: Vectors, rows: int, cols: int, lanes: int) -> None:
        self.k, self.rows, self.cols, self.lanes = k, rows, cols, lanes
        self._slots = {(i, j): k.slot(lanes) for i in range(rows) for j in range(cols)}

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._slots)

    def __getitem__(self, cell: tuple[int, int]) -> Vec:
        text = f"load {vector_type(self.lanes)}, ptr {self._slots[cell]}, align 4"
        return Vec(self.k, self.k.emit(text), self.lanes)

    def __setitem__(self, cell: tuple[int, int], value: Vec) -> None:
        self.k.emit_void(f"store {value.type} {value.ssa}, ptr {self._slots[cell]}, align 4")

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
