"""Write LLVM IR that reads like the loop nest it becomes.

Values carry operators, buffers carry strides, and loops obey one rule:
`with k.loop(n)` is a loop the CPU runs; `for i in range(n)` is a loop Python unrolls.

IR is written as text. That is ten times faster than a tree of instruction objects, and the text is
needed anyway: it is hashed, cached and shown.

The text of a stage is written when it is first needed, by a function that the generator hands over.
So a kernel whose code is known already (`core.identity`) costs no more than its numbers of tasks.

Functions and their control flow are here. `emit` writes instructions, `values` and `memory` define
what a kernel computes with; all of these can be imported from this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.memory import Buffer, Tile, at_channel
from fastrun.kernels.codegen.values import (
    Condition,
    Index,
    Int,
    Vec,
    Vectors,
    constant,
    first_lanes,
    fma,
    least,
    most,
    operand,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, DType
from fastrun.kernels.core.forks import once
from fastrun.kernels.core.layout import Array, Placement
from fastrun.kernels.core.program import Io, Program, Stage

__all__ = [
    "ARGUMENTS",
    "Buffer",
    "Condition",
    "Index",
    "Int",
    "Kernel",
    "Module",
    "Tile",
    "Vec",
    "at_channel",
    "constant",
    "first_lanes",
    "fma",
    "least",
    "most",
    "outcomes",
]

ARGUMENTS = ("src", "weights", "bias", "add", "dst", "shared", "local")


class Kernel(Vectors):
    """One stage's function under construction."""

    def __init__(self, module: Module, symbol: str) -> None:
        super().__init__(module.cpu, module.declarations)
        self._symbol = symbol

    @property
    def begin(self) -> Index:
        """First task of this call."""
        return Index(self, "%begin")

    @property
    def end(self) -> Index:
        """One past the last task of this call."""
        return Index(self, "%end")

    def argument(self, name: str, *strides: int, offset: int = 0, dtype: DType = F32) -> Buffer:
        """One of `ARGUMENTS` as an array that begins at element `offset`."""
        whole = Buffer(self, f"%{name}", (1,), dtype)
        return whole.at(offset).strided(*strides)

    def tensor(self, name: str, where: Placement, y: int = 0, x: int = 0) -> Buffer:
        """One of `ARGUMENTS` indexed (image, block, y, x, lane), re-based at pixel (y, x)."""
        strides = (where.n_stride, where.block_stride, where.y_stride, where.x_stride, 1)
        offset = where.origin + y * where.y_stride + x * where.x_stride
        return self.argument(name, *strides, offset=offset, dtype=where.dtype)

    def tile(self, rows: int, cols: int, lanes: int = 0, dtype: DType = F32) -> Tile:
        """A block of registers, not yet filled."""
        return Tile(self, rows, cols, lanes or self.lanes, dtype)

    def index(self, x: Int) -> Index:
        """`x` as a run-time integer, where an integer known at build time is not accepted."""
        return x if isinstance(x, Index) else Index(self, "0", x)

    def lanes_from(self, start: Index, lanes: int) -> str:
        """A mask of the lanes from number `start` on: no lanes or all where `start` is outside."""
        kind, number = vector_type(lanes, "i64"), ", ".join(f"i64 {i}" for i in range(lanes))
        if lanes == 1:
            return self.emit(f"icmp sge i64 0, {start.value}")
        one = self.emit(f"insertelement {kind} poison, i64 {start.value}, i32 0")
        text = f"shufflevector {kind} {one}, {kind} poison, <{lanes} x i32> zeroinitializer"
        return self.emit(f"icmp sge {kind} <{number}>, {self.emit(text)}")

    def either(self, condition: Condition, yes: Buffer, no: Buffer) -> Buffer:
        """One of two arrays of the same strides."""
        text = f"select i1 {condition.ssa}, ptr {yes.base}, ptr {no.base}"
        return replace(yes, base=self.emit(text))

    @contextmanager
    def loop(self, *bounds: Int, step: int = 1) -> Iterator[Index]:
        """for (i = start; i < stop; i += step), bounds as in `range`.

        A loop with constant bounds must run at least once.

        Raises:
            ValueError: constant bounds are empty.
        """
        start, stop = bounds if len(bounds) == 2 else (0, bounds[0])
        name, before = self._fresh(), self._block
        first, last = operand(start), operand(stop)
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
    def times(self, count: int) -> Iterator[Int]:
        """A loop over range(count); a single turn is straight code."""
        if count == 1:
            yield 0
        else:
            with self.loop(count) as i:
                yield i

    @contextmanager
    def each(self, begin: Int, end: Int, straight: bool) -> Iterator[Sequence[Int]]:
        """The numbers from `begin` to before `end`: all in straight code, or one in a loop."""
        if straight and isinstance(begin, int) and isinstance(end, int):
            yield range(begin, end)
        else:
            with self.loop(begin, end) as i:
                yield [i]

    @contextmanager
    def when(self, condition: Condition | bool, holds: bool = True) -> Iterator[None]:
        """The body runs only where `condition` holds, or does not; see `outcomes`."""
        if isinstance(condition, bool):
            assert condition == holds, "code that never runs"
            yield
            return
        condition = condition if holds else ~condition
        name = self._fresh()
        self.emit_void(f"br i1 {condition.ssa}, label %then{name}, label %else{name}")
        self._start(f"then{name}")
        yield
        self.emit_void(f"br label %else{name}")
        self._start(f"else{name}")

    def call(self, stage: Stage, **arguments: Buffer) -> None:
        """Run all tasks of a stage of this module, by default with this kernel's operands."""
        pointers = (f"ptr {arguments[a].base if a in arguments else f'%{a}'}" for a in ARGUMENTS)
        everything = [*pointers, "i64 0", f"i64 {stage.tasks}"]
        self.emit_void(f"call void @{stage.symbol}({', '.join(everything)})")

    def scratch(self, size: int, *strides: int, dtype: DType = F32) -> Buffer:
        """A small array of `size` elements on the stack."""
        return Buffer(self, self.slot(1, size, dtype), strides, dtype)

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


def outcomes(condition: Condition | bool) -> tuple[bool, ...]:
    """What a truth value may be when the kernel runs: both, unless it is known already."""
    return (condition,) if isinstance(condition, bool) else (True, False)


class Module:
    """A kernel's stages, in the order they run."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.declarations: dict[str, None] = {}
        self._writers: list[Callable[[], Iterable[str]]] = []
        self._stages: list[Stage] = []

    def stage(self, symbol: str, tasks: int) -> Callable[[Callable[[Kernel, Index], None]], None]:
        """Add a stage: the function below writes, with the kernel, what the task of an index does.

        @module.stage("copy", rows)
        def write_copy(k: Kernel, task: Index) -> None:
            ...
        """

        def add(write: Callable[[Kernel, Index], None]) -> None:
            def text() -> Iterable[str]:
                k = Kernel(self, symbol)
                with k.loop(k.begin, k.end) as task:
                    write(k, task)
                return [k.text()]

            self._writers.append(text)
            self._stages.append(Stage(symbol, tasks))

        return add

    def include(self, program: Program, name: str) -> list[Stage]:
        """Include the stages of a finished program as `name` and a number, for `Kernel.call`."""
        stages = [Stage(f"{name}{i}", stage.tasks) for i, stage in enumerate(program.stages)]

        def texts() -> Iterable[str]:
            _, *paragraphs = program.ir.rstrip().split("\n\n")
            for stage, mine in zip(program.stages, stages, strict=True):
                head = f"define void @{stage.symbol}("
                text = next(x for x in paragraphs if x.startswith(head))
                yield text.replace(head, f"define internal void @{mine.symbol}(", 1)
            lines = (line for x in paragraphs[len(stages) :] for line in x.splitlines())
            self.declarations |= dict.fromkeys(lines)

        self._writers.append(texts)
        return stages

    def program(
        self,
        io: Io,
        pack_weights: Callable[[Array], Array] = np.ravel,
        shared_bytes: int = 0,
        local_bytes: int = 0,
    ) -> Program:
        """The finished program."""
        return Program(
            once(self._text), tuple(self._stages), io, pack_weights, shared_bytes, local_bytes
        )

    def _text(self) -> str:
        head = f'target triple = "{self.cpu.triple}"'
        functions = [text for write in self._writers for text in write()]
        return "\n\n".join([head, *functions, *sorted(self.declarations)]) + "\n"
