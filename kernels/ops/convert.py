"""The edge of a network: values of the caller's element types become float32, and back.

The caller's array may end at the end of its memory: nothing behind it is read or written.
"""

from __future__ import annotations

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Vec
from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.strided_loops import Nest, aligned, operand, rows, singly
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, BY_NAME, F16, F32, I16, I32, U8, DType
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check

UNROLL = 4

_F64 = DType("f64", 64, "float64", "double")
_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_OTHERS = {"float64": _F64} | {
    name: DType(f"{'u' if name[0] == 'u' else 's'}{bits}", bits, name, f"i{bits}")
    for name in _INTEGERS
    for bits in [int(name.lstrip("uint"))]
}

BY_NUMPY_NAME = {"float32": F32, "float16": F16, "bfloat16": BF16, "bool": U8} | {
    name: BY_NAME.get(dtype.name, dtype) for name, dtype in _OTHERS.items()
}
"""The element types that a caller may have, by their names in numpy and ONNX.

Truth values are bytes of 0 and 1.
"""


def convert(cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Copy `src` to `dst`, of the same shape; at least one of the two is of float32.

    Numbers that float32 lacks are rounded to nearest. Integers are made by cutting off the fraction
    and going to the nearest end of the type's range; a NaN becomes 0.

    Raises:
        ScheduleError: the shapes differ, or none of the two is of float32.
    """
    check(src.shape == dst.shape, f"{src.shape} cannot be converted to {dst.shape}")
    names = f"{src.dtype.name} cannot be converted to {dst.dtype.name}"
    check(F32 in (src.dtype, dst.dtype), names)
    module = Module(cpu)
    out, view = aligned(dst, src)
    *outer, length = out.shape
    read, written = view.strides[-1], out.strides[-1]
    lanes = cpu.lanes if read == written == 1 else 1
    nest = Nest([*singly(tuple(outer)), rows(length, lanes, UNROLL)])

    @nest.stage(module, "convert")
    def write_convert(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                a = operand(k, "src", view).at(*places, x).strided(read)
                b = operand(k, "dst", out).at(*places, x).strided(written)
                _row(k, a, b, run.size, lanes)

    return module.program(Io(src.buffer, dst.buffer, dst.buffer))


def convert_strided(cpu: Cpu, src: Strided, dst: Strided, loose: str) -> Program:
    """As `convert`, where strides of `src` or `dst`, whichever is `loose`, come at run time.

    The weights are these strides: elements as numbers of 64 bits, one for each axis.

    Raises:
        ScheduleError: as `convert`.
    """
    plain = convert(cpu, src, dst).io
    fixed = dst if loose == "src" else src
    axes = sorted(range(len(fixed.shape)), key=lambda axis: -abs(fixed.strides[axis]))
    shape = [fixed.shape[axis] for axis in axes] or [1]  # a single number has no axis
    module, nest = Module(cpu), Nest(singly(tuple(shape)))

    @nest.stage(module, "convert", 0)
    def write_convert(k: Kernel) -> None:
        steps = [_stride(k, axis) for axis in axes]
        with nest.outer() as places, nest.loop(nest.inner[0]) as x:
            far: Int = 0
            near: Int = fixed.offset
            for place, step, axis in zip((*places, x), steps, axes, strict=False):
                far = place * step + far
                near = place * fixed.strides[axis] + near
            a, b = (k.argument(name, 1, dtype=view.dtype).at(far if name == loose else near)
                    for name, view in (("src", src), ("dst", dst)))  # fmt: skip
            b.store(_converted(k, a.load(lanes=1), b.dtype))

    return module.program(plain)


def _stride(k: Kernel, axis: int) -> Index:
    at = k.emit(f"getelementptr i64, ptr %weights, i64 {axis}")
    return Index(k, k.emit(f"load i64, ptr {at}, align 8"))


def _row(k: Kernel, src: Buffer, dst: Buffer, count: int, lanes: int) -> None:
    """`count` elements, in pieces of 2^n up to `lanes`."""
    done = 0
    while done < count:
        piece = min(lanes, 1 << ((count - done).bit_length() - 1))
        dst.store(_converted(k, src.load(done, lanes=piece), dst.dtype), done)
        done += piece


def _converted(k: Kernel, x: Vec, dtype: DType) -> Vec:
    before = x.dtype
    if before is dtype:
        return x
    if before is F16:
        return _of_half(k, x)
    if before is BF16:
        return k.shifted(_raw(k, "zext", x.bits_as(I16), I32), "shl", 16).bits_as(F32)
    if dtype is F16:
        return _to_half(k, x)
    if dtype is BF16:
        return k.to_bf16(x)
    if before.is_float and dtype.is_float:
        return _raw(k, "fpext" if dtype.bits > before.bits else "fptrunc", x, dtype)
    if dtype.is_float:
        return _raw(k, "uitofp" if before.name[0] == "u" else "sitofp", x, dtype)
    kind = "" if x.lanes == 1 else f"v{x.lanes}"
    name = "fptoui" if dtype.name[0] == "u" else "fptosi"
    return k.target(f"llvm.{name}.sat.{kind}{dtype.llvm_name}.{kind}f32", dtype, x.lanes, x)


def _raw(k: Kernel, instruction: str, x: Vec, dtype: DType) -> Vec:
    wanted = vector_type(x.lanes, dtype.llvm_name)
    return Vec(k, k.emit(f"{instruction} {x.type} {x.ssa} to {wanted}"), x.lanes, dtype)


# Half precision is taken apart by integers: where a processor lacks instructions for it, LLVM calls
# functions of a library that need not be there.


def _and(k: Kernel, x: Vec, bits: int) -> Vec:
    mask = k.const(bits, x.lanes, I32)
    return Vec(k, k.emit(f"and {x.type} {x.ssa}, {mask.ssa}"), x.lanes, I32)


def _or(k: Kernel, x: Vec, y: Vec) -> Vec:
    return Vec(k, k.emit(f"or {x.type} {x.ssa}, {y.ssa}"), x.lanes, I32)


def _less(k: Kernel, x: Vec, bound: int) -> str:
    """Where integers, none negative, are below a bound."""
    return k.emit(f"icmp slt {x.type} {x.ssa}, {k.const(bound, x.lanes, I32).ssa}")


def _of_half(k: Kernel, x: Vec) -> Vec:
    """The exponent moves by a product with 2^112, which also normalises subnormal numbers."""
    bits = _raw(k, "zext", x.bits_as(I16), I32)
    size = _and(k, bits, 0x7FFF)
    moved = (k.shifted(size, "shl", 13).bits_as(F32) * 2.0**112).bits_as(I32)
    endless = _or(k, moved, k.const(0x7F800000, x.lanes, I32))
    found = k.blend(_less(k, size, 0x7C00), moved, endless)
    return _or(k, found, k.shifted(_and(k, bits, 0x8000), "shl", 16)).bits_as(F32)


def _to_half(k: Kernel, x: Vec) -> Vec:
    """To nearest, ties to even; numbers beyond the range become infinite."""
    bits = x.bits_as(I32)
    size = _and(k, bits, 0x7FFFFFFF)
    odd = _and(k, k.shifted(size, "lshr", 13), 1)
    normal = k.shifted(size + ((15 - 127) * (1 << 23) + 0xFFF) + odd, "lshr", 13)
    # Next to 0.5 the last bit of a float32 is that of a subnormal half, and the sum rounds.
    sums = (size.bits_as(F32) + 0.5).bits_as(I32)
    subnormal = sums - 0x3F000000
    infinite, nan = (k.const(value, x.lanes, I32) for value in (0x7C00, 0x7E00))
    endless = k.blend(_less(k, size, 0x7F800001), infinite, nan)
    found = k.blend(_less(k, size, 113 << 23), subnormal, normal)
    found = k.blend(_less(k, size, (127 + 16) << 23), found, endless)
    signed = _or(k, found, _and(k, k.shifted(bits, "lshr", 16), 0x8000))
    return signed.to(I16).bits_as(F16)
