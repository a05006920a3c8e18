"""Write LLVM IR that reads like the loop nest it becomes.

Values carry operators, buffers carry strides, and loops obey one rule:
`with k.loop(n)` is a loop the CPU runs; `for i in range(n)` is a loop Python unrolls.

IR is written as text: ten times faster than a tree of instruction objects, and the text is what is
hashed, cached and shown anyway.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kernels.core.cpu import Cpu
from kernels.core.layout import Array, Io, Placement
from kernels.core.template import Program, Stage

ARGUMENTS = ("src", "weights", "bias", "add", "dst", "shared", "local")


@dataclass(frozen=True)
class Index:
    """An integer known only at run time, plus a constant. A plain `int` stays one until they meet.

    The constant is kept apart so that it ends up as an address displacement.
    """

    k: Kernel
    ssa: str
    plus: int = 0

    def __add__(self, other: Int) -> Index:
        if isinstance(other, int):
            return replace(self, plus=self.plus + other)
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
        a, b = self.value, _value(other)
        return Index(self.k, self.k.emit(f"select i1 {mine.ssa}, i64 {a}, i64 {b}"))

    def _apply(self, instruction: str, operand: int) -> Index:
        return Index(self.k, self.k.emit(f"{instruction} i64 {self.value}, {operand}"))

    def _compare(self, predicate: str, other: Int) -> Condition:
        a, b = self.value, _value(other)
        return Condition(self.k, self.k.emit(f"icmp {predicate} i64 {a}, {b}"))


# An integer of the kernel: known when it is built, or only when it runs.
Int = Index | int


def least(i: Int, bound: int) -> Int:
    """The smaller of the two."""
    return min(i, bound) if isinstance(i, int) else i.min(bound)


def most(i: Int, bound: int) -> Int:
    """The larger of the two."""
    return max(i, bound) if isinstance(i, int) else i.max(bound)


@dataclass(frozen=True)
class Condition:
    """A truth value known only at run time."""

    k: Kernel
    ssa: str

    def __and__(self, other: Condition) -> Condition:
        return Condition(self.k, self.k.emit(f"and i1 {self.ssa}, {other.ssa}"))

    def __invert__(self) -> Condition:
        return Condition(self.k, self.k.emit(f"xor i1 {self.ssa}, true"))


@dataclass(frozen=True)
class Vec:
    """`lanes` float32 values in a vector register; one lane is a plain float."""

    k: Kernel
    ssa: str
    lanes: int

    def __add__(self, other: Vec | float) -> Vec:
        return self._apply("fadd", other)

    def __sub__(self, other: Vec | float) -> Vec:
        return self._apply("fsub", other)

    def __mul__(self, other: Vec | float) -> Vec:
        return self._apply("fmul", other)

    def __truediv__(self, other: Vec | float) -> Vec:
        return self._apply("fdiv", other)

    __radd__, __rmul__ = __add__, __mul__

    def max(self, least: Vec | float) -> Vec:
        """The larger of the two; a NaN in `self` stays."""
        return self._select("ogt", least)

    def min(self, most: Vec | float) -> Vec:
        """The smaller of the two; a NaN in `self` stays."""
        return self._select("olt", most)

    @property
    def type(self) -> str:
        """The LLVM type."""
        return _type(self.lanes)

    def _operand(self, other: Vec | float) -> str:
        return other.ssa if isinstance(other, Vec) else constant(other, self.lanes)

    def _apply(self, instruction: str, other: Vec | float) -> Vec:
        text = f"{instruction} {self.type} {self.ssa}, {self._operand(other)}"
        return Vec(self.k, self.k.emit(text), self.lanes)

    def _select(self, predicate: str, other: Vec | float) -> Vec:
        k, bits = self.k, _type(self.lanes, "i1")
        operand = self._operand(other)
        wins = k.emit(f"fcmp {predicate} {self.type} {operand}, {self.ssa}")
        text = f"select {bits} {wins}, {self.type} {operand}, {self.type} {self.ssa}"
        return Vec(k, k.emit(text), self.lanes)


def fma(a: Vec, b: Vec, c: Vec) -> Vec:
    """a * b + c in one instruction, spelled out so it never depends on fast-math flags."""
    return a.k.intrinsic("fma", a, b, c)


@dataclass(frozen=True)
class Buffer:
    """A strided float32 array. Strides are in floats and known at build time."""

    k: Kernel
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
        return Vec(self.k, self.k.emit(f"load {_type(lanes)}, ptr {address}, align 4"), lanes)

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
        address, kind, bits = self.address(*index), _type(lanes), _type(lanes, "i1")
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

    def __init__(self, k: Kernel, rows: int, cols: int, lanes: int) -> None:
        self.k, self.rows, self.cols, self.lanes = k, rows, cols, lanes
        self._slots = {(i, j): k.slot(lanes) for i in range(rows) for j in range(cols)}

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._slots)

    def __getitem__(self, cell: tuple[int, int]) -> Vec:
        text = f"load {_type(self.lanes)}, ptr {self._slots[cell]}, align 4"
        return Vec(self.k, self.k.emit(text), self.lanes)

    def __setitem__(self, cell: tuple[int, int], value: Vec) -> None:
        self.k.emit_void(f"store {value.type} {value.ssa}, ptr {self._slots[cell]}, align 4")

    def fill(self, value: Vec) -> None:
        """The same value in every cell."""
        for cell in self:
            self[cell] = value


class Kernel:
    """One stage's function under construction."""

    def __init__(self, module: Module, symbol: str) -> None:
        self.cpu, self.lanes = module.cpu, module.cpu.lanes
        self._module, self._symbol = module, symbol
        self._slots: list[str] = []
        self._lines: list[str] = []
        self._count = 0
        self._block = "body"

    @property
    def begin(self) -> Index:
        """First task of this call."""
        return Index(self, "%begin")

    @property
    def end(self) -> Index:
        """One past the last task of this call."""
        return Index(self, "%end")

    def argument(self, name: str, *strides: int, offset: int = 0) -> Buffer:
        """One of `ARGUMENTS` as an array, `offset` floats in."""
        whole = Buffer(self, f"%{name}", strides)
        return replace(whole, base=Buffer(self, whole.base, (1,)).address(offset))

    def tensor(self, name: str, where: Placement, y: int = 0, x: int = 0) -> Buffer:
        """One of `ARGUMENTS` indexed (image, block, y, x, lane), re-based at pixel (y, x)."""
        strides = (where.n_stride, where.block_stride, where.y_stride, where.x_stride, 1)
        offset = where.origin + y * where.y_stride + x * where.x_stride
        return self.argument(name, *strides, offset=offset)

    def tile(self, rows: int, cols: int, lanes: int = 0) -> Tile:
        """A block of registers, not yet filled."""
        return Tile(self, rows, cols, lanes or self.lanes)

    def const(self, value: float, lanes: int = 0) -> Vec:
        """`value` in every lane."""
        lanes = lanes or self.lanes
        return Vec(self, constant(value, lanes), lanes)

    def splat(self, scalar: Vec, lanes: int = 0) -> Vec:
        """A one-lane value in every lane."""
        lanes = lanes or self.lanes
        if lanes == 1:
            return scalar
        kind = _type(lanes)
        one = self.emit(f"insertelement {kind} poison, float {scalar.ssa}, i32 0")
        text = f"shufflevector {kind} {one}, {kind} poison, <{lanes} x i32> zeroinitializer"
        return Vec(self, self.emit(text), lanes)

    def shuffle(self, a: Vec, b: Vec, order: Sequence[int]) -> Vec:
        """Lanes picked from a's, then b's."""
        if len(order) == 1:
            source, lane = (a, order[0]) if order[0] < a.lanes else (b, order[0] - a.lanes)
            return Vec(self, self.emit(f"extractelement {source.type} {source.ssa}, i32 {lane}"), 1)
        mask = ", ".join(f"i32 {i}" for i in order)
        text = f"shufflevector {a.type} {a.ssa}, {b.type} {b.ssa}, <{len(order)} x i32> <{mask}>"
        return Vec(self, self.emit(text), len(order))

    def index(self, x: Int) -> Index:
        """`x` as a run-time integer, for where a build-time one will not do."""
        return x if isinstance(x, Index) else Index(self, "0", x)

    def lanes_from(self, start: Index, lanes: int) -> str:
        """A mask of the lanes from number `start` on; none or all of them where it is outside."""
        kind, number = _type(lanes, "i64"), ", ".join(f"i64 {i}" for i in range(lanes))
        if lanes == 1:
            return self.emit(f"icmp sge i64 0, {start.value}")
        one = self.emit(f"insertelement {kind} poison, i64 {start.value}, i32 0")
        text = f"shufflevector {kind} {one}, {kind} poison, <{lanes} x i32> zeroinitializer"
        return self.emit(f"icmp sge {kind} <{number}>, {self.emit(text)}")

    def blend(self, mask: str, chosen: Vec, other: Vec) -> Vec:
        """`chosen` in the lanes of `mask`, `other` elsewhere."""
        bits, kind = _type(chosen.lanes, "i1"), chosen.type
        text = f"select {bits} {mask}, {kind} {chosen.ssa}, {kind} {other.ssa}"
        return Vec(self, self.emit(text), chosen.lanes)

    def either(self, condition: Condition, yes: Buffer, no: Buffer) -> Buffer:
        """One of two arrays of the same strides."""
        text = f"select i1 {condition.ssa}, ptr {yes.base}, ptr {no.base}"
        return replace(yes, base=self.emit(text))

    @contextmanager
    def loop(self, *bounds: Int, step: int = 1) -> Iterator[Index]:
        """for (i = start; i < stop; i += step), bounds as in `range`.

        Constant bounds run at least once, which is checked here.
        """
        start, stop = bounds if len(bounds) == 2 else (0, bounds[0])
        name, before = self._fresh(), self._block
        first, last = _value(start), _value(stop)
        if isinstance(start, int) and isinstance(stop, int):
            if stop <= start:
                raise ValueError(f"a loop from {start} to {stop} never runs")
            self.emit_void(f"br label %loop{name}")
        else:
            enters = self.emit(f"icmp slt i64 {first}, {last}")
            self.emit_void(f"br i1 {enters}, label %loop{name}, label %done{name}")
        self._start(f"loop{name}")
        phi = len(self._lines)
        self._lines.append("")
        yield Index(self, f"%i{name}")
        self._lines.append(f"  %next{name} = add nsw i64 %i{name}, {step}")
        self._lines[phi] = (
            f"  %i{name} = phi i64 [ {first}, %{before} ], [ %next{name}, %{self._block} ]"
        )
        again = self.emit(f"icmp slt i64 %next{name}, {last}")
        self.emit_void(f"br i1 {again}, label %loop{name}, label %done{name}")
        self._start(f"done{name}")

    @contextmanager
    def when(self, condition: Condition) -> Iterator[None]:
        """The body runs only where `condition` holds."""
        name = self._fresh()
        self.emit_void(f"br i1 {condition.ssa}, label %then{name}, label %else{name}")
        self._start(f"then{name}")
        yield
        self.emit_void(f"br label %else{name}")
        self._start(f"else{name}")

    def choose(
        self, condition: Condition | bool, yes: Callable[[], None], no: Callable[[], None]
    ) -> None:
        """One of two pieces of code: now where the condition is known, else when it runs."""
        if isinstance(condition, bool):
            (yes if condition else no)()
            return
        with self.when(condition):
            yes()
        with self.when(~condition):
            no()

    def intrinsic(self, name: str, *operands: Vec) -> Vec:
        """An LLVM float intrinsic with operands and result of one type."""
        kind, lanes = operands[0].type, operands[0].lanes
        symbol = f"llvm.{name}.{'f32' if lanes == 1 else f'v{lanes}f32'}"
        self.declare(f"declare {kind} @{symbol}({', '.join([kind] * len(operands))})")
        arguments = ", ".join(f"{kind} {v.ssa}" for v in operands)
        return Vec(self, self.emit(f"call {kind} @{symbol}({arguments})"), lanes)

    def call(self, stage: Stage, **arguments: Buffer) -> None:
        """Do all tasks of a stage of this module; operands not given are this kernel's own."""
        pointers = (f"ptr {arguments[a].base if a in arguments else f'%{a}'}" for a in ARGUMENTS)
        everything = [*pointers, "i64 0", f"i64 {stage.tasks}"]
        self.emit_void(f"call void @{stage.symbol}({', '.join(everything)})")

    def slot(self, lanes: int, count: int = 1) -> str:
        """Stack room for `count` vectors, as a pointer."""
        name = f"%slot{len(self._slots)}"
        array = _type(lanes) if count == 1 else f"[{count} x {_type(lanes)}]"
        self._slots.append(f"  {name} = alloca {array}, align 64")
        return name

    def scratch(self, floats: int, *strides: int) -> Buffer:
        """A small array on the stack."""
        return Buffer(self, self.slot(1, floats), strides)

    def emit(self, text: str) -> str:
        """Append an instruction with a result; returns the result's name."""
        name = f"%v{self._fresh()}"
        self._lines.append(f"  {name} = {text}")
        return name

    def emit_void(self, text: str) -> None:
        """Append an instruction without a result."""
        self._lines.append(f"  {text}")

    def declare(self, line: str) -> None:
        """Declare an external function once."""
        self._module.declarations[line] = None

    def text(self) -> str:
        """The finished function."""
        pointers = ", ".join(f"ptr noalias %{a}" for a in ARGUMENTS)
        head = f"define void @{self._symbol}({pointers}, i64 %begin, i64 %end) nounwind {{"
        return "\n".join(
            [
                head,
                "entry:",
                *self._slots,
                "  br label %body",
                "body:",
                *self._lines,
                "  ret void",
                "}",
            ]
        )

    def _fresh(self) -> int:
        self._count += 1
        return self._count

    def _start(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self._block = label


class Module:
    """A kernel's stages, in the order they run."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.declarations: dict[str, None] = {}
        self._functions: list[str] = []
        self._stages: list[Stage] = []

    @contextmanager
    def stage(self, symbol: str, tasks: int) -> Iterator[tuple[Kernel, Index]]:
        """Write one stage: yields the kernel and the index of the task to be done."""
        k = Kernel(self, symbol)
        with k.loop(k.begin, k.end) as task:
            yield k, task
        self._functions.append(k.text())
        self._stages.append(Stage(symbol, tasks))

    def include(self, program: Program, name: str) -> list[Stage]:
        """Take over the stages of a finished program, for `Kernel.call`, as `name` and a number."""
        _, *paragraphs = program.ir.rstrip().split("\n\n")
        found = []
        for number, stage in enumerate(program.stages):
            mine = Stage(f"{name}{number}", stage.tasks)
            head = f"define void @{stage.symbol}("
            text = next(x for x in paragraphs if x.startswith(head))
            self._functions.append(text.replace(head, f"define internal void @{mine.symbol}(", 1))
            found.append(mine)
        lines = (line for x in paragraphs[len(found) :] for line in x.splitlines())
        self.declarations |= dict.fromkeys(lines)
        return found

    def program(
        self,
        io: Io,
        pack_weights: Callable[[Array], Array],
        shared_bytes: int = 0,
        local_bytes: int = 0,
    ) -> Program:
        """The finished program."""
        head = f'target triple = "{self.cpu.triple}"'
        text = "\n\n".join([head, *self._functions, *sorted(self.declarations)]) + "\n"
        return Program(text, tuple(self._stages), io, pack_weights, shared_bytes, local_bytes)


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


def constant(value: float, lanes: int) -> str:
    """A literal: LLVM writes float constants as the bits of the equal double."""
    rounded = struct.unpack("f", struct.pack("f", value))[0]
    bits = struct.unpack("<Q", struct.pack("<d", rounded))[0]
    one = f"0x{bits:016X}"
    return one if lanes == 1 else _repeat(f"float {one}", lanes)


def first_lanes(count: int, lanes: int) -> str:
    """A constant mask with the first `count` lanes set."""
    return "<" + ", ".join(f"i1 {int(i < count)}" for i in range(lanes)) + ">"


def _repeat(element: str, lanes: int) -> str:
    return "<" + ", ".join([element] * lanes) + ">"


def _type(lanes: int, element: str = "float") -> str:
    return element if lanes == 1 else f"<{lanes} x {element}>"


def _value(x: Int) -> str:
    return str(x) if isinstance(x, int) else x.value
