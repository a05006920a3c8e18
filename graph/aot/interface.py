"""The C interface of an exported network, as IR.

A context is one block of memory: its words, the team of threads, the steps with their addresses,
the counters of the walk, the arena, and a workspace for each thread. It is made by `open`, and its
threads walk the steps with the same driver as in Python.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.graph.aot.choosing import choose, supported
from fastrun.graph.aot.context import context
from fastrun.graph.aot.functions import functions
from fastrun.graph.aot.in_place import in_place
from fastrun.graph.aot.layout import ENTRY, LOOSE, VARIANT, Interface, Variant
from fastrun.graph.aot.threads import THREADS
from fastrun.graph.aot.weights import weights
from fastrun.kernels.native.driver import driver_ir

SERVES = (
    "open", "lseek", "mmap", "munmap", "madvise", "close", "pthread_create", "pthread_join",
    "clock_gettime", "sched_yield", "syscall", "memcpy", "memset", "getauxval",
)  # fmt: skip
"""All that an exported library may need of the C library."""


def interface_ir(x: Interface, triple: str, variants: Sequence[Variant]) -> str:
    """The module with the driver and the functions of a library, for the baseline of all variants.

    The functions that programs call are those of `functions`; all others stay inside.
    """
    rows, texts = [], []
    for i, v in enumerate(variants):
        texts.append(f"@{v.steps} = external hidden constant [{v.count} x {ENTRY}]")
        texts.append(f"@{v.loose} = external hidden constant [{x.ports} x {LOOSE}]")
        texts.append(_text(f"name{i}", v.name))
        rows.append(
            f"%variant {{ ptr @{v.steps}, i64 {v.count}, i64 {v.arena}, i64 {v.local}, "
            f"i64 {v.weights}, ptr @name{i}, ptr @{v.loose}, i64 {v.weight_bytes} }}"
        )
    parts = [
        driver_ir(triple)
        .replace("define i64 @lead(", "define internal i64 @lead(")
        .replace("define void @serve(", "define internal void @serve("),
        f"%variant = type {VARIANT}",
        f"%entry = type {ENTRY}",
        f"%loose = type {LOOSE}",
        "\n".join(texts),
        f"@variants = internal constant [{len(variants)} x %variant] [{', '.join(rows)}]",
        f'@head = internal constant [{len(x.head)} x i8] c"{_escaped(x.head)}", align 8',
        f"@{x.embed} = external hidden constant i8" if x.embed else "",
        "%tensor = type { ptr, ptr, ptr, i64, i64 }",
        _tensors(x),
        _DECLARATIONS,
        supported(triple, variants),
        choose(len(variants)),
        weights(x.file_size),
        THREADS,
        in_place(x),
        context(x),
        functions(x),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _tensors(x: Interface) -> str:
    """A table of what inputs and outputs are: name, type, shape, its length, bytes."""
    lines, rows = list[str](), list[str]()
    for i, port in enumerate((*x.inputs, *x.outputs)):
        name = f"port{i}"
        lines += [_text(f"{name}.name", port.name), _text(f"{name}.type", port.type)]
        sizes = ", ".join(f"i64 {n}" for n in port.shape)
        lines.append(f"@{name}.shape = internal constant [{len(port.shape)} x i64] [{sizes}]")
        parts = ", ".join(f"ptr @{name}.{part}" for part in ("name", "type", "shape"))
        rows.append(
            f"%tensor {{ {parts}, i64 {len(port.shape)}, i64 {port.dtype.bytes(port.size)} }}"
        )
    lines.append(f"@ports = internal constant [{len(rows)} x %tensor] [{', '.join(rows)}]")
    return "\n".join(lines)


def _text(symbol: str, text: str) -> str:
    """A constant that C can read as a string."""
    data = text.encode() + b"\0"
    return f'@{symbol} = internal constant [{len(data)} x i8] c"{_escaped(data)}"'


def _escaped(data: bytes) -> str:
    return "".join(f"\\{b:02X}" for b in data)


_DECLARATIONS = """declare i32 @open(ptr, i32, ...)
declare i64 @lseek(i32, i64, i32)
declare ptr @mmap(ptr, i64, i32, i32, i32, i64)
declare i32 @munmap(ptr, i64)
declare i32 @madvise(ptr, i64, i32)
declare i32 @close(i32)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(ptr, ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"""
