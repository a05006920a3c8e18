"""Elements of any type to float32 numbers and back, by scales that are operands; tables of bytes.

`kernels.core.scales` makes the operands.
"""

from __future__ import annotations

from fastrun.kernels.codegen.builder import Buffer, Vec, constant
from fastrun.kernels.codegen.dot import has
from fastrun.kernels.codegen.narrow import side_by_side
from fastrun.kernels.codegen.values import Index, Vectors
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, I16, I32, U8, DType
from fastrun.kernels.core.scales import TENSORS


def numbers(x: Vec, tensor: str = "src") -> Vec:
    """What elements of the argument `tensor` stand for, in float32."""
    if x.dtype is not U8:
        return x.to(F32)
    return (x.to(F32) - zero_point(x.k, tensor, x.lanes)) * scale_of(x.k, tensor, x.lanes)


def elements(x: Vec, dtype: DType, tensor: str = "dst") -> Vec:
    """Float32 numbers as elements of the argument `tensor`, which has this type.

    For u8 they are divided by the scale and rounded as in `Quantisation`; NaN becomes 0.
    """
    if dtype is not U8:
        return x.to(dtype)
    return in_steps(x / scale_of(x.k, tensor, x.lanes), zero_point(x.k, tensor, x.lanes))


def in_steps(x: Vec, zero: Vec) -> Vec:
    """Numbers in steps of a tensor of u8 with this zero point as its elements."""
    k, lanes = x.k, x.k.lanes
    low, high = zero * -1.0, zero * -1.0 + 255.0
    # In this order NaN becomes the lower bound. Rounding it would be undefined.
    whole = low.max(x).min(high).to(I32) + zero.to(I32)
    if x.lanes <= lanes:
        return whole.to(U8)
    starts = range(0, x.lanes, lanes)
    return side_by_side([k.shuffle(whole, whole, range(i, i + lanes)) for i in starts])


def scale_of(k: Vectors, tensor: str, lanes: int) -> Vec:
    """The scale of the argument `tensor` in every lane."""
    return _scalar(k, 2 * TENSORS.index(tensor), lanes)


def zero_point(k: Vectors, tensor: str, lanes: int) -> Vec:
    """The zero point of the argument `tensor` in every lane, as float32."""
    return _scalar(k, 2 * TENSORS.index(tensor) + 1, lanes)


def _scalar(k: Vectors, place: int, lanes: int) -> Vec:
    return Buffer(k, "%bias", (1,)).splat(place, lanes=lanes)


def looked_up(x: Vec) -> Vec:
    """Elements of type u8 replaced by those of the table of 256 bytes in the weights."""
    if x.k.cpu.machine == "riscv64":
        return _gathered(x)
    k, width = x.k, table_lanes(x.k.cpu)
    if x.lanes <= width:
        order = [*range(x.lanes), *[0] * (width - x.lanes)]
        widened = k.shuffle(x, x, order) if x.lanes > 1 else k.splat(x, width)
        found = _permuted(widened) if width == _ALL // 4 else _blended(widened)
        return found if x.lanes == width else k.shuffle(found, found, range(x.lanes))
    parts = [
        looked_up(k.shuffle(x, x, range(start, start + width)))
        for start in range(0, x.lanes, width)
    ]
    while len(parts) > 1:
        parts = [
            k.shuffle(a, b, range(2 * a.lanes))
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


_ALL = 256  # entries of a table
_PART = 16  # bytes that all processors can shuffle by a register


def table_lanes(cpu: Cpu) -> int:
    """Bytes that are looked up together."""
    if cpu.lanes >= 16 and has(cpu, "avx512vbmi"):
        return _ALL // 4
    return min(4 * cpu.lanes, 2 * _PART)


def _permuted(x: Vec) -> Vec:
    """By instructions that permute the bytes of two registers."""
    k, table = x.k, Buffer(x.k, "%weights", (1,), U8)
    parts = [table.load(start, lanes=x.lanes) for start in range(0, _ALL, x.lanes)]
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    low = k.target(name, U8, x.lanes, parts[0], x, parts[1])
    high = k.target(name, U8, x.lanes, parts[2], x, parts[3])
    return k.blend(_negative(x), high, low)


def _gathered(x: Vec) -> Vec:
    """By loads of single bytes."""
    k, n = x.k, x.lanes
    if n == 1:
        index = Index(k, k.emit(f"zext i8 {x.ssa} to i64"))
        return Buffer(k, "%weights", (1,), U8).load(index, lanes=1)
    k.declare(
        f"declare <{n} x i8> @llvm.masked.gather.v{n}i8.v{n}p0(<{n} x ptr>, <{n} x i1>, <{n} x i8>)"
    )
    wide = k.emit(f"zext {x.type} {x.ssa} to <{n} x i64>")
    places = k.emit(f"getelementptr i8, ptr %weights, <{n} x i64> {wide}")
    all_ = ", ".join(["i1 true"] * n)
    text = f"<{n} x ptr> align 1 {places}, <{n} x i1> <{all_}>, {x.type} poison"
    return Vec(k, k.emit(f"call {x.type} @llvm.masked.gather.v{n}i8.v{n}p0({text})"), n, U8)


def _blended(x: Vec) -> Vec:
    """By shuffles of 16 bytes in each part of 128 bits, of which bits 4 to 7 choose one."""
    k, table = x.k, Buffer(x.k, "%weights", (1,), U8)
    low = Vec(k, k.emit(f"and {x.type} {x.ssa}, {constant(15, x.lanes, U8)}"), x.lanes, U8)
    # As words of 16 bits, whose shifts are one instruction: only the highest bit of a byte counts.
    masks = [k.shifted(x.bits_as(I16), "shl", 7 - bit).bits_as(U8) for bit in range(4, 8)]

    def chosen(first: int, count: int) -> Vec:
        """The result if bits choose among these parts of the table; few values live at a time."""
        if count == 1:
            entries = table.load(first * _PART, lanes=_PART)
            repeated = k.shuffle(entries, entries, [*range(_PART)] * (x.lanes // _PART))
            return _shuffled(repeated, low)
        half = count // 2
        lower, upper = chosen(first, half), chosen(first + half, half)
        return _either(masks[half.bit_length() - 1], upper, lower)

    return chosen(0, _ALL // _PART)


def _either(mask: Vec, chosen: Vec, other: Vec) -> Vec:
    """`chosen` where the highest bit of the mask's byte is set."""
    k, lanes = mask.k, mask.lanes
    if k.cpu.machine != "x86_64":
        return k.blend(_negative(mask), chosen, other)
    # LLVM would compute the mask of a `select` by a comparison first.
    name = {16: "llvm.x86.sse41.pblendvb", 32: "llvm.x86.avx2.pblendvb"}[lanes]
    return k.target(name, U8, lanes, other, chosen, mask)


def _shuffled(entries: Vec, index: Vec) -> Vec:
    k, lanes = entries.k, entries.lanes
    if k.cpu.machine != "x86_64":
        return k.target("llvm.aarch64.neon.tbl1.v16i8", U8, lanes, entries, index)
    name = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b"}[lanes]
    return k.target(name, U8, lanes, entries, index)


def _negative(x: Vec) -> str:
    """A mask of the lanes whose highest bit is set."""
    return x.k.emit(f"icmp slt {x.type} {x.ssa}, zeroinitializer")
