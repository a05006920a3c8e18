"""Memory traffic of a kernel, counted by running its own code on simulated caches.

Virtual machines hide the counters of cache misses. So in front of each load and store of a
program's IR a call looks the cache lines up in simulated caches of the processor's sizes: set
associative, the least recently used line leaves, every level keeps what it read from the next one.
Addresses and their order are the real ones; the arithmetic is taken out. Real caches prefetch, do
not replace exactly like that, and other programs use L3.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass

import numpy as np

from fastrun.kernels.core.cpu import CACHE_LINE, Cpu
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.levels import room
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Program, pack_bias
from fastrun.kernels.native.compile import compile_object
from fastrun.kernels.native.library import Library

# Lines of a set, of each cache.
WAYS = {"L1": 8, "L2": 8, "L3": 16}

_BITS = {"float": 32, "i32": 32, "half": 16, "bfloat": 16, "i16": 16, "i8": 8}
_VALUE = re.compile(r"^(?:<(\d+) x )?(\w+)>?$")
_LOAD = re.compile(r"^  (%\w+) = load ([^,]+), ptr (%\w+)")
_STORE = re.compile(r"^  store (<[^>]*>|\w+) .*, ptr (%\w+), align \d+$")
_MASKED = re.compile(r"^  (%\w+) = call (<[^>]*>) @llvm\.masked\.load\.[^(]*\(ptr align \d+ (%\w+)")
_MOVED = re.compile(r"^  (%\w+) = getelementptr inbounds \w+, ptr (%\w+)")
_MULTIPLIED = re.compile(r"^  (%\w+) = call (<[^>]*>|float) @llvm\.fma\.")


@dataclass(frozen=True)
class Traffic:
    """Bytes that each cache read from the next level or from memory, in whole lines."""

    l1: int
    l2: int
    l3: int
    accesses: int  # loads and stores


def traffic(p: ConvProblem, program: Program, cpu: Cpu, runs: int = 2) -> Traffic:
    """The traffic of the last of some runs on one thread. The runs before it fill the caches.

    `cpu` gives the sizes of the caches, which need not be those of this machine.
    """
    symbols = [stage.symbol for stage in program.stages]
    watched = _watched(program.ir, cpu)
    library = Library(compile_object(watched, Cpu.host()), [*symbols, "counts"])
    counts = np.ctypeslib.as_array((ctypes.c_int64 * 4).from_address(library.address("counts")))
    io = program.io
    weights = program.pack_weights(
        np.zeros((p.oc, p.group_c, *p.kernel), p.precision.weights.numpy)
    )
    sizes = (
        io.src.dtype.bytes(io.src.size + READ_SLACK),
        weights.nbytes,
        pack_bias(np.zeros(p.oc, np.float32)).nbytes,
        io.add.dtype.bytes(io.add.size + READ_SLACK),
        io.dst.dtype.bytes(io.dst.size + READ_SLACK),
        program.shared_bytes,
        program.local_bytes,
    )
    memory = [np.zeros(size + 2 * CACHE_LINE, np.uint8) for size in sizes]
    pointers = [a.ctypes.data + -a.ctypes.data % CACHE_LINE for a in memory]
    entry = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 7, ctypes.c_int64, ctypes.c_int64)
    for _ in range(runs):
        before = counts.copy()
        for stage in program.stages:
            entry(library.address(stage.symbol))(*pointers, 0, stage.tasks)
    accesses, l1, l2, l3 = (int(count) for count in counts - before)
    return Traffic(CACHE_LINE * l1, CACHE_LINE * l2, CACHE_LINE * l3, accesses)


def _watched(ir: str, cpu: Cpu) -> str:
    """The IR with a call in front of each access of memory, and without products.

    What is loaded becomes zero, so that LLVM removes the arithmetic; only integers, which may be
    addresses, are loaded. Stack slots are registers or never leave L1.
    """
    lines, slots = list[str](), set[str]()
    for line in ir.splitlines():
        if moved := _MOVED.match(line):
            if moved[2] in slots or moved[2].startswith("%slot"):
                slots.add(moved[1])
            lines.append(line)
            continue
        loaded, stored = _LOAD.match(line) or _MASKED.match(line), _STORE.match(line)
        name, kind, place = (
            loaded.groups() if loaded else ("", *stored.groups()) if stored else ("",) * 3
        )
        if place and not (place in slots or place.startswith("%slot")):
            lines.append(f"  call void @touch(ptr {place}, i64 {_bytes(kind)})")
            if name and kind != "i32":
                line = f"  {name} = bitcast {kind} zeroinitializer to {kind}"
        elif product := _MULTIPLIED.match(line):
            line = f"  {product[1]} = bitcast {product[2]} zeroinitializer to {product[2]}"
        lines.append(line)
    return "\n".join(lines) + _simulation(cpu)


def _bytes(kind: str) -> int:
    """Bytes of a value of an LLVM type."""
    found = _VALUE.match(kind)
    assert found, kind
    return int(found[1] or 1) * _BITS[found[2]] // 8


def _simulation(cpu: Cpu) -> str:
    """IR of the caches: `touch(address, bytes)` looks up lines, `counts` has what it found."""
    sets = {level: room(cpu, level) // (CACHE_LINE * ways) for level, ways in WAYS.items()}
    arrays = "\n".join(
        f"@{level} = internal global [{sets[level] * ways} x i64] zeroinitializer"
        for level, ways in WAYS.items()
    )
    looks = [
        _LOOK.format(level=level, sets=sets[level], ways=ways, number=number, after=after)
        for number, (level, ways, after) in enumerate(
            zip(WAYS, WAYS.values(), (*list(WAYS)[1:], ""), strict=True), 1
        )
    ]
    last = "define internal void @look_(i64 %line) nounwind {\n  ret void\n}\n"
    return "\n\n" + "\n".join(
        [arrays, "@counts = global [4 x i64] zeroinitializer", *looks, last, _TOUCH]
    )


_LOOK = """
define internal void @look_{level}(i64 %line) nounwind {{
entry:
  %set = urem i64 %line, {sets}
  %first = mul i64 %set, {ways}
  %base = getelementptr i64, ptr @{level}, i64 %first
  %front = load i64, ptr %base
  %same = icmp eq i64 %front, %line
  br i1 %same, label %found, label %next
next:
  %way = phi i64 [ 1, %entry ], [ %further, %older ]
  %moved = phi i64 [ %front, %entry ], [ %here, %older ]
  %at = getelementptr i64, ptr %base, i64 %way
  %here = load i64, ptr %at
  store i64 %moved, ptr %at
  %hit = icmp eq i64 %here, %line
  br i1 %hit, label %keep, label %older
older:
  %further = add i64 %way, 1
  %more = icmp ult i64 %further, {ways}
  br i1 %more, label %next, label %miss
miss:
  %counter = getelementptr i64, ptr @counts, i64 {number}
  %count = load i64, ptr %counter
  %one = add i64 %count, 1
  store i64 %one, ptr %counter
  call void @look_{after}(i64 %line)
  br label %keep
keep:
  store i64 %line, ptr %base
  br label %found
found:
  ret void
}}
"""

_TOUCH = """
define internal void @touch(ptr %place, i64 %bytes) nounwind {
entry:
  %count = load i64, ptr @counts
  %one = add i64 %count, 1
  store i64 %one, ptr @counts
  %address = ptrtoint ptr %place to i64
  %past = add i64 %address, %bytes
  %end = sub i64 %past, 1
  %first = lshr i64 %address, 6
  %last = lshr i64 %end, 6
  call void @look_L1(i64 %first)
  %across = icmp ugt i64 %last, %first
  br i1 %across, label %two, label %done
two:
  call void @look_L1(i64 %last)
  br label %done
done:
  ret void
}
"""
