"""Dot products of a group of channels, which a register tile adds to its sums at each step of K.

A float32 kernel multiplies one channel at a time. Instructions for small types multiply a group of
neighbouring channels by the weights of each lane and add the products: so a step of K is a group,
a pixel's group is broadcast as one number of 32 bits, and the weights of a group lie together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Buffer, Int, Vec, fma
from fastrun.kernels.core.cpu import Cpu, whole_lines
from fastrun.kernels.core.dtype import BF16, F32, I16, I32, S8, U8, DType
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import check
from fastrun.kernels.core.types import Types

# What a step multiplies: the vectors that a pixel's or the weights' group becomes in registers.
Group = tuple[Vec, ...]

_WORD = 4  # bytes that one broadcast brings
PACKED = "packed"  # the kind of weights that lie packed
_GROUP = 32  # channels of a group of packed weights
_STREAMS = 4  # vectors of channels of which packed weights are read at the same time
_EXACT = "vnni", "usdot", "sdot"  # kinds that multiply bytes of any value
_SPARE = 5  # a tile of 4x2 is left of 16 registers: it is fastest for all kinds (Zen 4)


@dataclass(frozen=True)
class Dot:
    """A kind of dot product.

    `name` is "" for one multiply-add a channel. `group` is the number of channels of a step,
    `registers` are further ones that a step needs beside the tile, `order` permutes packed weights
    (..., lanes, group) into reading order. `prepare` makes the operand of words of four bytes. If
    it `rounds`, float32 input must be turned into the type of the weights before. Numbers of the
    input are taken less `offset`, for which a table in front of the weights makes up. Where it
    `widens`, the operand of four bytes is two vectors of int16: bytes 0 and 2, and bytes 1 and 3.
    Weights of nine bits may be `centred` to fit s8: taken less the middle of their output channel.
    A kernel then adds this middle, from a table too, times the sum of the input under the filter.
    Packed weights of a lane and a group are `stored` elements, 0 for as many as the group has.
    """

    name: str
    types: Types
    group: int
    spread: Callable[[Buffer, int], Group]
    read: Callable[[Buffer, int], Group]
    add: Callable[[Vec, Group, Group], Vec]
    registers: int = 0
    rounds: bool = False
    offset: int = 0
    order: Callable[[NDArray[np.int8]], NDArray[np.int8]] = lambda packed: packed
    prepare: Callable[[Vec], Group] = lambda words: (words,)
    widens: bool = False
    centred: bool = False
    stored: int = 0

    @property
    def plain(self) -> bool:
        """Whether weights lie as they are, and sums of their products are all there is to do."""
        return not (self.offset or self.centred or self.stored)

    @property
    def width(self) -> int:
        """Elements of packed weights of a lane and a group."""
        return self.stored or self.group

    @property
    def operand(self) -> DType:
        """The type of the input as a step reads it."""
        return self.types.weights if self.rounds else self.types.src

    @property
    def spare(self) -> int:
        """Registers that heuristics leave beside the tile: a step of several instructions spills.

        In particular next to other steps, whose order LLVM mixes.
        """
        return max(_SPARE, self.registers) if self.registers else 0

    def groups(self, channels: int) -> int:
        """Steps for so many channels; the last may reach beyond, where weights are zero."""
        return -(-channels // self.group)

    def pixel(self, src: Buffer, *index: Int, lanes: int) -> Group:
        """The group of channels at a place of the input, in every lane."""
        return self.spread(src.at(*index), lanes)

    def weights(self, packed: Buffer, *index: Int, lanes: int) -> Group:
        """The weights of a group and of `lanes` output channels."""
        return self.read(packed.at(*index), lanes)


def _fma(types: Types) -> Dot:
    def spread(at: Buffer, lanes: int) -> Group:
        one = at.load(lanes=1) if types.src is F32 else at.load(lanes=1).to(F32)
        return (at.k.splat(one, lanes),)

    def read(at: Buffer, lanes: int) -> Group:
        return (at.load(lanes=lanes).to(F32),)

    return Dot("", types, 1, spread, read, lambda acc, x, w: fma(x[0], w[0], acc))


def _mul(types: Types) -> Dot:
    """One channel at a time, as int32: what every processor has."""

    def spread(at: Buffer, lanes: int) -> Group:
        return (at.k.splat(at.load(lanes=1).to(I32), lanes),)

    def read(at: Buffer, lanes: int) -> Group:
        return (at.load(lanes=lanes).to(I32),)

    return Dot("mul", types, 1, spread, read, lambda acc, x, w: acc + x[0] * w[0])


def _word(at: Buffer, lanes: int, dtype: DType, part: int = 0) -> Vec:
    """A word of 32 bits in every lane, seen as a vector of smaller elements."""
    place = at.strided(1).at(part * (_WORD // dtype.bytes()))
    bits = at.k.emit(f"load i32, ptr {place.base}, align 1")
    return at.k.splat(Vec(at.k, bits, 1, I32), lanes).bits_as(dtype)


def _vector(at: Buffer, lanes: int, dtype: DType, part: int = 0) -> Vec:
    """Weights of a group: as many elements as `lanes` words of 32 bits have."""
    size = lanes * (_WORD // dtype.bytes())
    return at.strided(1).load(part * size, lanes=size)


def _one(name: str, types: Types, symbol: str, sums: DType, pixels: DType, weights: DType) -> Dot:
    """One instruction, by the name of its intrinsic, that multiplies words and adds to the sums.

    `BITS` in the name stands for those of the vector.
    """

    def add(acc: Vec, x: Group, w: Group) -> Vec:
        named = f"llvm.{symbol.replace('BITS', str(32 * acc.lanes))}"
        return acc.k.target(named, sums, acc.lanes, acc, x[0], w[0])

    return _words(name, types, pixels, weights, add)


def _words(
    name: str,
    types: Types,
    pixels: DType,
    weights: DType,
    add: Callable[[Vec, Group, Group], Vec],
    registers: int = 0,
) -> Dot:
    """A step of one word of 32 bits for a pixel, and as many bits of weights in each lane."""
    return Dot(
        name,
        types,
        _WORD // pixels.bytes(),
        lambda at, lanes: (_word(at, lanes, pixels),),
        lambda at, lanes: (_vector(at, lanes, weights),),
        add,
        registers,
    )


def _vnni(types: Types) -> Dot:
    return _one("vnni", types, "x86.avx512.vpdpbusd.BITS", I32, U8, S8)


def _vnni16(types: Types) -> Dot:
    """int16 x int16 in one instruction."""
    return _one("vnni16", types, "x86.avx512.vpdpwssd.BITS", I32, I16, I16)


def _wd16(types: Types) -> Dot:
    """int16 x int16, added to int32 in a second instruction."""

    def add(acc: Vec, x: Group, w: Group) -> Vec:
        return acc + multiply_pairs(x[0], w[0])

    return _words("wd16", types, I16, I16, add, registers=1)


def multiply_pairs(a: Vec, b: Vec) -> Vec:
    """int16 x int16, neighbouring products added to int32: vpmaddwd."""
    name = {8: "sse2.pmadd.wd", 16: "avx2.pmadd.wd", 32: "avx512.pmaddw.d.512"}[a.lanes]
    return a.k.target(f"llvm.x86.{name}", I32, a.lanes // 2, a, b)


def _wd(types: Types) -> Dot:
    """Both widened to int16: exact, and half as fast as products of bytes.

    The even and the odd channels of a word are taken apart, which needs no shuffle.
    """

    def prepare(words: Vec) -> Group:
        k, word = words.k, words.bits_as(I16)
        even = k.emit(f"and {word.type} {word.ssa}, {k.const(255, word.lanes, I16).ssa}")
        return Vec(k, even, word.lanes, I16), k.shifted(word, "lshr", 8)

    def spread(at: Buffer, lanes: int) -> Group:
        return prepare(_word(at, lanes, U8))

    def read(at: Buffer, lanes: int) -> Group:
        return tuple(_vector(at, lanes // 2, S8, half).to(I16) for half in (0, 1))

    def add(acc: Vec, x: Group, w: Group) -> Vec:
        for a, b in zip(x, w, strict=True):
            acc = acc + multiply_pairs(a, b)
        return acc

    def order(packed: NDArray[np.int8]) -> NDArray[np.int8]:
        halves = packed.reshape(*packed.shape[:-1], 2, 2)  # (..., lane, pair, parity)
        return np.moveaxis(halves, -1, -3)

    return Dot(
        "wd",
        types,
        4,
        spread,
        read,
        add,
        registers=2,
        order=order,
        prepare=prepare,
        widens=True,
    )


def _wdp(types: Types) -> Dot:
    """As `wd`, with weights that are widened when they are packed: more bytes, less to compute.

    A load that widens takes one of the units that multiply and add (Zen 4).
    """

    def read(at: Buffer, lanes: int) -> Group:
        return tuple(_vector(at, lanes, I16, half) for half in (0, 1))

    wide = replace(types, weights=I16)
    return replace(_wd(types), name="wdp", types=wide, read=read)


def widened(types: Types) -> Dot:
    """Products of input that lies in memory as int16 already, which saves taking bytes apart."""

    def add(acc: Vec, x: Group, w: Group) -> Vec:
        return acc + multiply_pairs(x[0], w[0])

    return Dot(
        "wd16",
        replace(types, src=I16),
        2,
        lambda at, lanes: (_word(at, lanes, I16),),
        lambda at, lanes: (at.strided(1).load(lanes=2 * lanes).to(I16),),
        add,
        registers=1,
    )


def _ubsw(types: Types, chain: int) -> Dot:
    """u8 x s8, neighbouring products added to int16, `chain` such sums before they become int32.

    vpmaddubsw saturates: weights must be small enough, see `dots`.
    """

    def pairs(x: Vec, w: Vec) -> Vec:
        name = {16: "ssse3.pmadd.ub.sw.128", 32: "avx2.pmadd.ub.sw", 64: "avx512.pmaddubs.w.512"}
        return x.k.target(f"llvm.x86.{name[x.lanes]}", I16, x.lanes // 2, x, w)

    def add(acc: Vec, x: Group, w: Group) -> Vec:
        first, *others = [pairs(a, b) for a, b in zip(x, w, strict=True)]
        for other in others:
            first = first + other
        return acc + multiply_pairs(first, acc.k.const(1, first.lanes, I16))

    def order(packed: NDArray[np.int8]) -> NDArray[np.int8]:
        words = packed.reshape(*packed.shape[:-1], chain, 4)  # (..., lane, word, byte)
        return np.moveaxis(words, -2, -3)

    return Dot(
        f"ubsw{chain}",
        types,
        4 * chain,
        lambda at, lanes: tuple(_word(at, lanes, U8, i) for i in range(chain)),
        lambda at, lanes: tuple(_vector(at, lanes, S8, i) for i in range(chain)),
        add,
        registers=chain + 1,
        order=order,
    )


def _bf16(types: Types) -> Dot:
    dot = _one("bf16", types, "x86.avx512bf16.dpbf16ps.BITS", F32, BF16, BF16)
    return replace(dot, rounds=types.src is F32)


def _usdot(types: Types) -> Dot:
    return _one("usdot", types, "aarch64.neon.usdot.v4i32.v16i8", I32, U8, S8)


def _sdot(types: Types) -> Dot:
    """s8 x s8: bytes less 128, that is, with the highest bit turned."""

    def prepare(words: Vec) -> Group:
        k, low = words.k, words.bits_as(S8)
        turned = k.emit(f"xor {low.type} {low.ssa}, {k.const(-128, low.lanes, S8).ssa}")
        return (Vec(k, turned, low.lanes, S8),)

    def add(acc: Vec, x: Group, w: Group) -> Vec:
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return acc.k.target(name, I32, acc.lanes, acc, x[0], w[0])

    return Dot(
        "sdot",
        types,
        4,
        lambda at, lanes: prepare(_word(at, lanes, U8)),
        lambda at, lanes: (_vector(at, lanes, S8),),
        add,
        offset=128,
        prepare=prepare,
    )


def _packed(dot: Dot) -> Dot:
    """The products of a kind with weights of 4 to 6 bits that lie packed: fewer bytes to read.

    Of 32 channels in each lane there are four words of nibbles, the lower four bits of channels
    that are four apart, and a word for each further bit: one of single bits, or two of pairs.
    """
    quads, words = dot.group // _WORD, _GROUP // _WORD
    half, extra = dot.types.bound, dot.types.bits - 4
    per = words // extra if extra else 1

    def spread(at: Buffer, lanes: int) -> Group:
        first = at.strided(1)
        return tuple(
            x for i in range(0, words, quads) for x in dot.spread(first.at(i * _WORD), lanes)
        )

    def read(at: Buffer, lanes: int) -> Group:
        k = at.k

        def masked(number: int, shift: int, bits: int) -> Vec:
            """Bits of a word that it shifts to the right."""
            place = replace(at.strided(1).at(number * lanes * _WORD), dtype=I32)
            word = place.load(lanes=lanes)
            if shift:
                word = k.shifted(word, "lshr" if shift > 0 else "shl", abs(shift))
            mask = k.const(bits * 0x01010101, lanes, I32)
            return Vec(k, k.emit(f"and {word.type} {word.ssa}, {mask.ssa}"), lanes, I32)

        found = []
        for i in range(words):
            value = masked(i // 2, 4 * (i % 2), 15)
            if extra:
                high = masked(words // 2 + i // per, extra * (i % per) - 4, (2**extra - 1) << 4)
                both = k.emit(f"or {value.type} {value.ssa}, {high.ssa}")
                value = Vec(k, both, lanes, I32)
            found.append(value.bits_as(S8) - half)
        return tuple(found)

    def add(acc: Vec, x: Group, w: Group) -> Vec:
        for i in range(0, words, quads):
            acc = dot.add(acc, x[i : i + quads], w[i : i + quads])
        return acc

    def order(packed: NDArray[np.int8]) -> NDArray[np.int8]:
        whole = (packed.astype(np.int16) + half).astype(np.uint8)
        each = np.moveaxis(whole.reshape(*whole.shape[:-1], words, _WORD), -2, 0)
        lines = [each[i] & 15 | (each[i + 1] & 15) << 4 for i in range(0, words, 2)]
        for first in range(0, words if extra else 0, per):
            fields = (each[first + i] >> 4 << extra * i for i in range(per))
            lines.append(functools.reduce(np.bitwise_or, fields))
        return np.stack(lines, axis=-3).view(np.int8)

    return replace(
        dot,
        name=PACKED,
        group=_GROUP,
        stored=_GROUP * dot.types.bits // 8,
        spread=spread,
        read=read,
        add=add,
        order=order,
        registers=6,
    )


def table_room(dot: Dot, channels: int) -> int:
    """Elements of 32 bits in front of the packed weights of so many channels.

    For each channel there is what an offset takes from its sums, then the middle of its weights.
    """
    return whole_lines(channels) * ((dot.offset > 0) + dot.centred)


def dots(types: Types, cpu: Cpu) -> Sequence[Dot]:
    """The kinds for these types on this processor, the fastest first.

    If weights are bf16 there is a product of pairs of bf16, which rounds float32 input as well.
    """
    if types.signs or types.as_int16:
        return []
    if types.integer and types.weights is I16:
        narrow = dots(replace(types, weights=S8, bits=S8.bits), cpu)
        centred = (replace(dot, centred=True) for dot in narrow if dot.name in _EXACT)
        return [*centred, _wdp(types) if cpu.machine == "x86_64" else _mul(types)]
    x86 = cpu.machine == "x86_64"
    vnni = has(cpu, "avx512vnni") or has(cpu, "avxvnni")
    if types.src is I16:
        return [*([_vnni16(types)] if vnni else []), *([_wd16(types)] if x86 else [])]
    if not types.integer:
        native = types.weights is BF16 and has(cpu, "avx512bf16")
        return [*([_bf16(types)] if native else []), _fma(types)]
    few = 4 <= types.bits <= 6
    if not x86:
        wider = [_usdot(types)] if has(cpu, "i8mm") else []
        found = [*wider, *([_sdot(types)] if has(cpu, "dotprod") else [])]
        return [*found, *(_packed(dot) for dot in found[:1] if few)] or [_mul(types)]
    found = [_vnni(types)] if vnni else []
    # 255 * 2 * chain * the largest absolute value must fit int16.
    chains = [n for n in (8, 4, 2, 1) if 255 * 2 * n * types.bound < 1 << 15]
    found += [_ubsw(types, n) for n in chains]
    packed = [_packed(found[0])] if few else []
    # Beside the best kind the one of fewer bytes is enough.
    return [*found, *([] if vnni else [_wdp(types)]), _wd(types), *packed]


def usual_dot(p: ConvProblem, cpu: Cpu) -> Dot:
    """The fastest kind for the channels of a problem in NHWC."""
    kinds = dots(p.precision, cpu)
    return next(dot for dot in kinds if not dot.rounds or p.c % dot.group == 0)


def multiply_add(total: Vec, x: Vec, w: Vec) -> Vec:
    """total + x * w, computed in the type of the total."""
    x, w = x.to(total.dtype), w.to(total.dtype)
    return fma(x, w, total) if total.dtype.is_float else x * w + total


def reads_less(p: ConvProblem, schedule: Any) -> Any:
    """The schedule with packed weights, if a single pixel reads weights of 4 to 6 bits.

    Each pixel unpacks them again, and from a cache reading bytes takes less time.
    """
    if p.n * p.oh * p.ow > 1 or not 4 <= p.precision.bits <= 6:
        return schedule
    return replace(schedule, dot=PACKED, cols=min(schedule.cols, _STREAMS), unroll=1)


def has(cpu: Cpu, feature: str) -> bool:
    """Whether the processor has an instruction set, by LLVM's name of it."""
    return f"+{feature}" in cpu.features.split(",")


def dot_of(types: Types, name: str, cpu: Cpu) -> Dot:
    """The kind that a schedule names.

    Raises:
        ScheduleError: this processor does not have it for these types.
    """
    known = {dot.name: dot for dot in dots(types, cpu)}
    names = ", ".join(name or "none to name" for name in known)
    check(name in known, f"dot={name}: for {str(types) or 'f32'} this processor has {names}")
    return known[name]
