"""An arrangement as data of a library: the module of its kernels, a table of steps, weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastrun.graph.aot.layout import (
    ARENA,
    ENTRY,
    INPUT,
    KIND_BITS,
    LOOSE,
    MOST_IN_PLACE,
    NONE,
    OUTPUT,
    PORT_BITS,
    TAKEN,
    WEIGHTS,
    InPlace,
)
from fastrun.graph.build import strided
from fastrun.graph.build.memory import Lifetime, allocate
from fastrun.graph.build.steps import Arrangement, Port, Step
from fastrun.graph.core.model import Array
from fastrun.kernels.core.cpu import CACHE_LINE, Cpu
from fastrun.kernels.core.dtype import F32, DType
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.program import Program, pack_bias, pack_channels
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.ops.convert import convert, convert_strided


@dataclass(frozen=True)
class Image:
    """What one kind of processor runs: IR, sizes in bytes, and packed weights.

    `steps` is the symbol of the table, which has `count` entries; `loose` that of a table with the
    steps that copy inputs in and outputs out by strides of the caller's. `in_place` says for each
    input and output how it must lie so that steps can use it there, None if they cannot.
    """

    ir: str
    steps: str
    loose: str
    count: int
    arena: int
    local: int
    weights: bytes
    in_place: tuple[InPlace | None, ...]


def image(arrangement: Arrangement, cpu: Cpu, types: Mapping[str, DType], tag: str) -> Image:
    """The image of a network whose caller has these `types`; its symbols begin with `tag`.

    The inputs are copied in and the outputs copied out by steps of their own, so that the caller's
    arrays may lie anywhere. These steps convert from and to the caller's element types.
    """
    steps = arrangement.kernels
    shared = [Lifetime(s.program.shared_bytes, i, i) for i, s in enumerate(steps)]
    offsets, arena = allocate([*arrangement.buffers, *shared])
    packed, rows, programs = _Packed(), list[str](), dict[str, int]()
    functions, declared = list[str](), dict[str, None]()

    def called(program: Program) -> list[str]:
        """The functions and tasks of a program's stages."""
        if program.ir not in programs:
            programs[program.ir] = len(programs)
            found, lines = _functions(program, f"{tag}_k{programs[program.ir]}")
            functions.extend(found)
            declared.update(dict.fromkeys(lines))
        prefix = f"{tag}_k{programs[program.ir]}"
        return [f"ptr @{prefix}_{stage.symbol}, i64 {stage.tasks}" for stage in program.stages]

    def add(program: Program, operands: Sequence[int], joins: bool) -> None:
        codes = ", ".join(f"i64 {operand}" for operand in operands)
        for stage in called(program):
            rows.append(f"{ENTRY} {{ {stage}, [6 x i64] [{codes}], i64 {int(joins)} }}")

    nothing = NONE << KIND_BITS

    inputs, outputs = arrangement.inputs, arrangement.outputs
    copied = [port.buffer for port in (*inputs, *outputs)]
    places = [_read_in_place(port, types, steps) for port in inputs]
    places += [_written_in_place(x, types, steps, copied.count(x.buffer)) for x in outputs]
    taken = {buffer: i for i, buffer in enumerate(copied[:MOST_IN_PLACE]) if places[i]}

    def buffer(number: int | None) -> int:
        if number is None:
            return nothing
        if number in taken:
            return _code(TAKEN, taken[number] << PORT_BITS | offsets[number])
        return _code(ARENA, offsets[number])

    loose = list[str]()
    for i, port in enumerate(inputs):
        program = convert(cpu, _given(port, types), _view(port))
        loose += called(convert_strided(cpu, _given(port, types), _view(port), "src"))
        last = i == len(inputs) - 1
        source = _code(INPUT, i)
        add(program, [source, nothing, nothing, nothing, buffer(port.buffer), nothing], last)
    for i, step in enumerate(steps):
        weights, bias = packed.step(step, offsets)
        workspace = _code(ARENA, offsets[len(arrangement.buffers) + i])
        operands = [buffer(step.src), weights, bias, buffer(step.add), buffer(step.dst), workspace]
        add(step.program, operands, step.joins)
    for i, port in enumerate(outputs):
        program = convert(cpu, _view(port), _given(port, types))
        loose += called(convert_strided(cpu, _view(port), _given(port, types), "dst"))
        target = _code(OUTPUT, i)
        add(program, [buffer(port.buffer), nothing, nothing, nothing, target, nothing], True)
    table = f"@{tag}_steps = hidden constant [{len(rows)} x {ENTRY}] [{', '.join(rows)}]"
    pairs = ", ".join(f"{LOOSE} {{ {pair} }}" for pair in loose)
    others = f"@{tag}_loose = hidden constant [{len(loose)} x {LOOSE}] [{pairs}]"
    head = f'target triple = "{cpu.triple}"'
    ir = "\n\n".join([head, *functions, *sorted(declared), table, others]) + "\n"
    local = max((s.program.local_bytes for s in steps), default=0)
    local = -(-(local + 4 * READ_SLACK) // 4096) * 4096
    return Image(ir, f"{tag}_steps", f"{tag}_loose", len(rows), arena, local, packed.content(),
                 tuple(places))  # fmt: skip


def _code(kind: int, value: int) -> int:
    return kind << KIND_BITS | value


def _read_in_place(port: Port, types: Mapping[str, DType], steps: Sequence[Step]) -> InPlace | None:
    """How an input must lie so that steps can read it there."""
    written = any(s.dst == port.buffer and s.work != "halo" for s in steps)
    return None if written else _in_place(port, types, steps)


def _written_in_place(
    port: Port, types: Mapping[str, DType], steps: Sequence[Step], uses: int
) -> InPlace | None:
    """How an output must lie so that steps can write it there.

    Steps that read a buffer may read behind it, where the caller has other memory. `uses` is the
    number of inputs and outputs in its buffer.
    """
    read = any(port.buffer in (s.src, s.add) for s in steps)
    filled = port.placement.size == math.prod(port.shape)
    return _in_place(port, types, steps) if filled and not read and uses == 1 else None


def _in_place(port: Port, types: Mapping[str, DType], steps: Sequence[Step]) -> InPlace | None:
    """How an array of the caller's must lie to take the place of a port's buffer."""
    # Distances between gathered buffers are constants of the code.
    gathered = any(s.gathered and port.buffer in s.buffers for s in steps)
    if gathered or types[port.name] is not F32 or port.placement.dtype is not F32:
        return None
    view, size = _view(port), port.placement.size
    plain = zip(view.strides, _given(port, types).strides, port.shape, strict=True)
    dense = size == math.prod(port.shape) and all(a == b or n == 1 for a, b, n in plain)
    return InPlace(view.strides, F32.bytes(view.offset), F32.bytes(size + READ_SLACK), dense)


def _given(port: Port, types: Mapping[str, DType]) -> Strided:
    return replace(Strided.row_major(port.shape), dtype=types[port.name])


def _view(port: Port) -> Strided:
    return strided.view(port.placement, port.shape)


def _functions(program: Program, name: str) -> tuple[list[str], list[str]]:
    """The functions of a program with names of their own, and its declarations."""
    _, *paragraphs = program.ir.rstrip().split("\n\n")
    functions, lines = list[str](), list[str]()
    for paragraph in paragraphs:
        if paragraph.startswith("define"):
            text = re.sub(r"@(?!llvm\.)([\w.]+)\(", rf"@{name}_\1(", paragraph)
            linkage = "internal" if text.startswith("define internal") else "hidden"
            functions.append(re.sub(r"^define (internal )?", f"define {linkage} ", text))
        else:
            lines += paragraph.splitlines()
    return functions, lines


class _Packed:
    """Weights and biases one behind the other, at cache lines, with room to read behind each."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def step(self, step: Step, offsets: Sequence[int]) -> tuple[int, int]:
        """The operands of a step's weights and bias."""
        weights = step.packed()
        if step.gathered:
            src, size = offsets[step.src], step.program.io.src.dtype.bytes()
            places = [(offsets[number] - src) // size + at for number, at in step.gathered]
            weights = np.concatenate([pack_channels(places), weights])
        return self._put(weights), self._put(None if step.bias is None else pack_bias(step.bias))

    def _put(self, values: Array | None) -> int:
        if values is None or not values.size:
            return NONE << KIND_BITS
        at, data = self._size, np.ascontiguousarray(values).tobytes()
        size = -(-(len(data) + 4 * READ_SLACK) // CACHE_LINE) * CACHE_LINE
        self._parts.append(data.ljust(size, b"\0"))
        self._size += size
        return _code(WEIGHTS, at)

    def content(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)
