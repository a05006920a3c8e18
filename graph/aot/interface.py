"""The C interface of an exported network, as IR.

A context is one block of memory: its words, the team of threads, the steps with their addresses,
the counters of the walk, the arena, and a workspace for each thread. It is made by `open`, and its
threads walk the steps with the same driver as in Python.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.graph.aot.choosing import choose, supported
from fastrun.graph.aot.context import MAKE, MAP_WEIGHTS, SIZES, START, STRIDES
from fastrun.graph.aot.functions import functions
from fastrun.graph.aot.layout import ENTRY, LOOSE, SHARED_BYTES, Variant
from fastrun.graph.aot.ports import Outer
from fastrun.kernels.native.driver import driver_ir

SERVES = (
    "open", "lseek", "mmap", "munmap", "close", "pthread_create", "pthread_join", "clock_gettime",
    "sched_yield", "syscall", "memcpy", "memset", "getauxval",
)  # fmt: skip
"""All that an exported library may need of the C library."""


def interface_ir(
    prefix: str,
    triple: str,
    variants: Sequence[Variant],
    head: bytes,
    file_size: int,
    embed: str,
    inputs: Sequence[Outer],
    outputs: Sequence[Outer],
) -> str:
    """The module with the driver and the functions `prefix_*`, for the baseline of all variants.

    `head` are the first bytes of the file of weights, `embed` is the symbol of weights that lie in
    the library, "" if there are none.
    """
    rows, texts = [], []
    ports = [*inputs, *outputs]
    slot = 8 * max(len(x.shape) for x in ports)  # bytes for the strides of each
    size, room = str(file_size), str(file_size + SHARED_BYTES)
    for i, v in enumerate(variants):
        texts.append(f"@{v.steps} = external hidden constant [{v.count} x {ENTRY}]")
        texts.append(f"@{v.loose} = external hidden constant [{len(ports)} x {LOOSE}]")
        texts.append(_text(f"name{i}", v.name))
        rows.append(
            f"%variant {{ ptr @{v.steps}, i64 {v.count}, i64 {v.arena}, i64 {v.local}, "
            f"i64 {v.weights}, ptr @name{i}, ptr @{v.loose} }}"
        )
    table = ", ".join(rows)
    parts = [
        driver_ir(triple)
        .replace("define i64 @lead(", "define internal i64 @lead(")
        .replace("define void @serve(", "define internal void @serve("),
        "%variant = type { ptr, i64, i64, i64, i64, ptr, ptr }",
        f"%entry = type {ENTRY}",
        f"%loose = type {LOOSE}",
        "\n".join(texts),
        f"@variants = internal constant [{len(variants)} x %variant] [{table}]",
        f'@head = internal constant [{len(head)} x i8] c"{_escaped(head)}", align 8',
        f"@{embed} = external hidden constant i8" if embed else "",
        "%tensor = type { ptr, ptr, ptr, i64, i64 }",
        _tensors("inputs", inputs),
        _tensors("outputs", outputs),
        _DECLARATIONS,
        supported(triple, variants),
        choose(len(variants)),
        SIZES.replace("STRIDES_SIZE", str(len(ports) * (8 + slot))),
        STRIDES.replace("PORTS_SIZE", str(8 * len(ports))).replace("SLOT", str(slot)),
        MAP_WEIGHTS.replace("FILE_SIZE", size).replace("ROOM_SIZE", room),
        START,
        MAKE.replace("INPUT_COUNT", str(len(inputs))).replace("OUTPUT_COUNT", str(len(outputs))),
        functions(prefix, embed)
        .replace("ROOM_SIZE", room)
        .replace("INPUT_COUNT", str(len(inputs))),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _tensors(table: str, described: Sequence[Outer]) -> str:
    """A table of what inputs or outputs are: name, type, shape, its length, bytes."""
    lines, rows = list[str](), list[str]()
    for i, x in enumerate(described):
        name = f"{table}{i}"
        lines += [_text(f"{name}.name", x.name), _text(f"{name}.type", x.type)]
        sizes = ", ".join(f"i64 {n}" for n in x.shape)
        lines.append(f"@{name}.shape = internal constant [{len(x.shape)} x i64] [{sizes}]")
        parts = ", ".join(f"ptr @{name}.{part}" for part in ("name", "type", "shape"))
        rows.append(f"%tensor {{ {parts}, i64 {len(x.shape)}, i64 {x.dtype.bytes(x.size)} }}")
    lines.append(f"@{table} = internal constant [{len(rows)} x %tensor] [{', '.join(rows)}]")
    lines.append(f"@{table}.count = internal constant i64 {len(rows)}")
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
declare i32 @close(i32)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(ptr, ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"""
