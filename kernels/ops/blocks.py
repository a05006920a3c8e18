"""Products of rows with weights of 2, 4 or 8 bits in blocks, in integers: y = activation(W x + b).

Along the features, a block of neighbours shares a scale and a zero point: w = (q - zero) * scale
with q from 0 to 2^bits - 1, as in ONNX's MatMulNBits. A first stage rounds each row of the input to
signed bytes, with a scale of its own for each block, of which 127 is the largest value. That is
what MatMulNBits allows by `accuracy_level=4`. Sums of a block are exact integers:

    y = b + sum over blocks of scale_w * scale_x * sum over the block of (q_w - zero) * q_x

Weights stay packed in memory. A word of 32 bits has four bytes, one below the other in K, of which
each holds 8 / bits features that are four apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Tile, Vec, fma
from fastrun.kernels.codegen.dot import Group, has, multiply_pairs
from fastrun.kernels.codegen.epilogue import activate
from fastrun.kernels.codegen.sums import across
from fastrun.kernels.codegen.tiling import channel_panels, cover, cut, tile_count
from fastrun.kernels.core.cpu import Cpu, whole_lines
from fastrun.kernels.core.dtype import F32, I16, I32, S8, U8
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check

BITS = 2, 4, 8
"""The numbers of bits of a weight."""

LEAST = 16  # features of the smallest block: a word of weights of two bits

_LARGEST = 127  # the largest absolute value of a rounded number of the input
_QUAD = 4  # features of one instruction


@dataclass(frozen=True)
class Blocks:
    """`block` features share a scale; with `zeros` also a zero point, else it is 2^(bits - 1)."""

    bits: int
    block: int
    zeros: bool = False
    bias: bool = False
    activation: str = ""

    @property
    def usual_zero(self) -> int:
        """The zero point of all blocks where they have none of their own."""
        return 1 << (self.bits - 1)

    @property
    def word(self) -> int:
        """Features in a word of 32 bits."""
        return 32 // self.bits


def why_not(spec: Blocks, cpu: Cpu) -> str | None:
    """The reason why there is no such kernel for a processor, or None."""
    x86 = cpu.machine == "x86_64"
    if not (has(cpu, "dotprod") if not x86 else cpu.lanes >= 4):
        return "the processor has no products of bytes"
    if spec.bits not in BITS or spec.block < LEAST or spec.block % LEAST:
        return f"{spec.bits} bits in blocks of {spec.block}: blocks are multiples of {LEAST}"
    return None


@identified
def build(spec: Blocks, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Multiply every image of `src`, flattened, into the dst.c values of `dst`.

    The program packs what `operands` gives.

    Raises:
        ScheduleError: the images differ in number, `dst` is not one pixel without a halo, features
            of `src` do not follow one another in memory, or there is no such kernel (`why_not`).
    """
    reason = why_not(spec, cpu)
    check(reason is None, str(reason))
    check(src.n == dst.n, f"dense cannot turn {src.n} images into {dst.n}")
    single = (dst.h, dst.w, dst.halo) == (1, 1, (0, 0, 0, 0))
    check(single, "dense writes images of one pixel without a halo")
    depth = src.c * src.h * src.w
    flat = src.layout.name == "NCHW" or (src.h, src.w) == (1, 1)
    check(flat and src.n_stride == depth, "features do not follow one another in memory")
    form = _Form(spec, cpu, depth, src.n, dst.c)
    module = Module(cpu)

    @module.stage("round", src.n)
    def write_round(k: Kernel, row: Index) -> None:
        form.round_row(k, row)

    images, panels = cover(src.n, form.rows), form.panels
    runs = tile_count(images)

    @module.stage("blocks", tile_count(panels) * runs)
    def write_blocks(k: Kernel, task: Index) -> None:
        for panel in panels:
            with panel.when(k, task // runs) as first:
                tail = dst.c % cpu.lanes if panel is panels[-1] else 0
                for some in images:
                    with some.when(k, task % runs) as image:
                        total = form.sums(k, some.size, panel.size, image, first)
                        out = k.argument("dst", dst.n_stride, cpu.lanes, offset=dst.origin)
                        for i, j in total:
                            kept = tail if tail and j == panel.size - 1 else cpu.lanes
                            value = activate(total[i, j], spec.activation)
                            out.store_first(value, kept, image + i, first + j)

    return module.program(Io(src, dst, dst), form.pack, form.shared_bytes)


def operands(stored: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> NDArray[np.float32]:
    """What a program packs: `stored` (outputs, features), scales and zeros (outputs, blocks)."""
    return np.concatenate([stored, scale, zero], axis=1).astype(np.float32)


@dataclass(frozen=True)
class _Form:
    """Where weights and rounded rows lie, and how they are multiplied.

    Packed blocks of `lanes` outputs are scales as float32, zero points as s8, words of weights.
    `shared` holds the rows as bytes, then a scale and a sum for each block of a row.
    """

    spec: Blocks
    cpu: Cpu
    depth: int
    images: int
    outputs: int

    @property
    def lanes(self) -> int:
        """Outputs of a vector."""
        return self.cpu.lanes

    @property
    def blocks(self) -> int:
        """Blocks of a row; the last is filled up with zeros."""
        return -(-self.depth // self.spec.block)

    @property
    def vnni(self) -> bool:
        """Whether one instruction multiplies unsigned weights by signed input, four at a time."""
        return has(self.cpu, "avx512vnni") or has(self.cpu, "avxvnni")

    @property
    def centre(self) -> int:
        """What is taken from stored weights when they are packed: without VNNI bytes are signed."""
        return 128 if self.spec.bits == 8 and not self.vnni else 0

    @property
    def rows(self) -> int:
        """Rows of a register tile, which share a reading of the weights."""
        if self.cpu.registers == 32:
            return min(self.images, 5)
        return min(self.images, 2)

    @property
    def cols(self) -> int:
        """Vectors of outputs of a register tile: of a few rows, several streams of weights."""
        few = 4 if self.images == 1 else 2
        return few if self.cpu.registers == 32 else 2

    @property
    def panels(self) -> list[Any]:
        """Vectors of outputs, as register tiles have them."""
        return channel_panels(self.outputs, self.lanes, self.cols, split_tail=True)

    @property
    def head(self) -> int:
        """Bytes from a block to its words."""
        return self.lanes * (F32.bytes() + self.spec.zeros)

    @property
    def bytes(self) -> int:
        """Bytes from a block to the next one."""
        return self.head + self.lanes * self.spec.block * self.spec.bits // 8

    @property
    def row_bytes(self) -> int:
        """Bytes from a rounded row to the next: whole blocks."""
        return self.blocks * self.spec.block

    @property
    def facts(self) -> int:
        """Elements of 32 bits from the start of `shared` to the scales of blocks."""
        return whole_lines(-(-self.images * self.row_bytes // I32.bytes()))

    @property
    def shared_bytes(self) -> int:
        """Bytes of the workspace."""
        return I32.bytes(self.facts + 2 * self.images * self.blocks + 2 * self.lanes)

    def _scales(self, k: Kernel) -> Buffer:
        return k.argument("shared", 2 * self.blocks, 2, offset=self.facts)

    def _sums(self, k: Kernel) -> Buffer:
        return k.argument("shared", 2 * self.blocks, 2, offset=self.facts + 1, dtype=I32)

    def round_row(self, k: Kernel, row: Int) -> None:
        """Write a row as bytes, with the scale and the sum of each of its blocks."""
        x = k.argument("src", self.depth, 1).at(row).strided(1)
        full, rest = divmod(self.depth, self.spec.block)
        if full:
            with k.times(full) as number:
                self._round_block(k, x, row, number, self.spec.block)
        if rest:
            self._round_block(k, x, row, full, rest)

    def _round_block(self, k: Kernel, x: Buffer, row: Int, number: Int, size: int) -> None:
        lanes, start = self.lanes, number * self.spec.block
        pieces = [(at, min(lanes, size - at)) for at in range(0, size, lanes)]
        zero = k.const(0.0)
        largest = lost = zero
        for at, count in pieces:
            value = x.load_first(count, start + at, lanes=lanes)
            largest = k.intrinsic("fabs", value).max(largest)
            lost = fma(value, zero, lost)  # not zero where a value is not finite
        top = across(largest, lambda a, b: a.max(b))
        unknown = across(lost, lambda a, b: a + b)
        step = top * (1 / _LARGEST) + unknown
        # Rows of zeros are divided by a number, too.
        inverse = k.const(float(_LARGEST)) / k.splat(top).max(1e-30)
        bytes_ = k.argument("shared", self.row_bytes, 1, dtype=S8)
        total = k.const(0, lanes, I32)
        padded = -(-self.spec.block // lanes) * lanes
        for at in range(0, padded, lanes):
            count = min(lanes, size - at)
            if count > 0:
                rounded = (x.load_first(count, start + at, lanes=lanes) * inverse).to(I32)
            else:
                rounded = k.const(0, lanes, I32)
            total = total + rounded
            kept = min(lanes, self.spec.block - at)
            bytes_.store_first(rounded.to(S8), kept, row, start + at)
        self._scales(k).store(step, row, number)
        self._sums(k).store(across(total, lambda a, b: a + b), row, number)

    def sums(self, k: Kernel, rows: int, cols: int, image: Int, first: Int) -> Tile:
        """The products of some rows with some vectors of outputs, bias included."""
        total = k.tile(rows, cols)
        bias = k.argument("bias", self.lanes)
        for i, j in total:
            total[i, j] = bias.load(first + j) if self.spec.bias else k.const(0.0)
        weights = k.argument("weights", self.blocks * self.bytes, self.bytes, 1, dtype=U8).at(first)
        x = k.argument("shared", self.row_bytes, 1, dtype=S8).at(image)
        scales, sums = self._scales(k).at(image), self._sums(k).at(image)
        with k.times(self.blocks) as number:
            places = [weights.at(j, number).strided(1) for j in range(cols)]
            acc = k.tile(rows, cols, self.lanes, I32)
            self._start(k, acc, places, sums, number)
            self._add(k, acc, places, x, number)
            steps = [replace(at, dtype=F32).load(lanes=self.lanes) for at in places]
            for i in range(rows):
                scale = scales.splat(i, number, lanes=self.lanes)
                for j in range(cols):
                    total[i, j] = fma(acc[i, j].to(F32) * scale, steps[j], total[i, j])
        return total

    def _start(
        self, k: Kernel, acc: Tile, places: Sequence[Buffer], sums: Buffer, number: Int
    ) -> None:
        """Begin a block with what its zero points take from its sums."""
        zeros = [k.const(self.spec.usual_zero - self.centre, self.lanes, I32)] * acc.cols
        if self.spec.zeros:
            behind = self.lanes * F32.bytes()
            found = [replace(at.at(behind), dtype=S8).load(lanes=self.lanes) for at in places]
            shift = 0 if self.centre else self.spec.usual_zero
            zeros = [zero.to(I32) + shift for zero in found]
        for i in range(acc.rows):
            taken = k.const(0, self.lanes, I32) - sums.splat(i, number, lanes=self.lanes)
            for j, zero in enumerate(zeros):
                acc[i, j] = taken * zero

    def _add(self, k: Kernel, acc: Tile, places: Sequence[Buffer], x: Buffer, number: Int) -> None:
        """Add the products of a block."""
        parts = self.spec.word // _QUAD
        words = self.spec.block // self.spec.word
        for run in cut(words, min(words, self._straight)):
            with run.unrolled(k) as some:
                wide: dict[tuple[int, int], Vec] = {}
                for word in some:
                    loaded = [self._word(at, word) for at in places]
                    for part in range(parts):
                        weights = [self._part(bits, part) for bits in loaded]
                        for i in range(acc.rows):
                            start = number * self.spec.block + (word * parts + part) * _QUAD
                            pixels = self._quad(k, x, i, start)
                            for j, w in enumerate(weights):
                                self._multiply(acc, wide, (i, j), w, pixels)
                for cell, value in wide.items():
                    one = k.const(1, value.lanes, I16)
                    acc[cell] = acc[cell] + multiply_pairs(value, one)

    @property
    def _straight(self) -> int:
        """Words in straight code. Of sums of int16 no more fit."""
        parts = self.spec.word // _QUAD
        if self.vnni or self.cpu.machine != "x86_64" or self.spec.bits == 8:
            return 8 // parts
        largest = 2 * _LARGEST * ((1 << self.spec.bits) - 1)
        return min(32, I16.range[1] // largest) // parts

    def _word(self, block: Buffer, number: Int) -> Vec:
        at = block.at(self.head).at(number * (self.lanes * I32.bytes()))
        return replace(at, dtype=I32).load(lanes=self.lanes)

    def _part(self, words: Vec, part: int) -> Group:
        """The bytes of one quad of features of each output."""
        k, bits = words.k, self.spec.bits
        if bits == 8:
            return self._widened(words) if self._widens else (words.bits_as(U8),)
        moved = k.shifted(words, "lshr", bits * part) if part else words
        mask = k.const((2**bits - 1) * 0x01010101, words.lanes, I32)
        masked = k.emit(f"and {moved.type} {moved.ssa}, {mask.ssa}")
        return (Vec(k, masked, words.lanes, I32).bits_as(U8),)

    @property
    def _widens(self) -> bool:
        """Whether bytes become int16 before they are multiplied."""
        return self.spec.bits == 8 and not self.vnni and self.cpu.machine == "x86_64"

    def _quad(self, k: Kernel, x: Buffer, row: int, start: Int) -> Group:
        """Four neighbours of a row in every lane."""
        at = x.at(row, start).strided(1)
        word = Vec(k, k.emit(f"load i32, ptr {at.address(0)}, align 1"), 1, I32)
        wide = k.splat(word, self.lanes)
        return self._widened(wide) if self._widens else (wide.bits_as(S8),)

    def _widened(self, words: Vec) -> Group:
        """Signed bytes as int16: the even and the odd ones of each word."""
        k, pairs = words.k, words.bits_as(I16)
        even = k.shifted(k.shifted(pairs, "shl", 8), "ashr", 8)
        return even, k.shifted(pairs, "ashr", 8)

    def _multiply(
        self, acc: Tile, wide: dict[tuple[int, int], Vec], cell: tuple[int, int], w: Group,
        x: Group,
    ) -> None:  # fmt: skip
        """Add the products of a quad to a sum, or to one of int16 where they fit."""
        k, lanes = acc.k, acc.lanes
        if self._widens:
            for a, b in zip(w, x, strict=True):
                acc[cell] = acc[cell] + multiply_pairs(a, b)
        elif self.vnni:
            name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
            acc[cell] = k.target(name, I32, lanes, acc[cell], w[0], x[0])
        elif self.cpu.machine == "x86_64":
            names = {
                16: "ssse3.pmadd.ub.sw.128",
                32: "avx2.pmadd.ub.sw",
                64: "avx512.pmaddubs.w.512",
            }
            name = f"llvm.x86.{names[4 * lanes]}"
            product = k.target(name, I16, 2 * lanes, w[0], x[0])
            wide[cell] = wide[cell] + product if cell in wide else product
        else:
            name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
            acc[cell] = k.target(name, I32, lanes, acc[cell], w[0], x[0])

    def pack(self, given: NDArray[Any]) -> NDArray[Any]:
        """`operands` in reading order."""
        spec, lanes, blocks = self.spec, self.lanes, self.blocks
        vectors, per = -(-self.outputs // lanes), 8 // spec.bits
        stored, scale, zero = np.split(given, [self.depth, self.depth + blocks], axis=1)
        padded = np.zeros((vectors * lanes, blocks * spec.block), np.uint8)
        padded[: self.outputs, : self.depth] = stored.astype(np.int16) - self.centre
        words = spec.block // spec.word
        # Features of a word: `per` quads, each of which has a place of `bits` in four bytes.
        each = padded.reshape(vectors, lanes, blocks, words, per, _QUAD)
        bytes_ = np.zeros((vectors, lanes, blocks, words, _QUAD), np.uint8)
        for part in range(per):
            bytes_ |= each[..., part, :] << np.uint8(spec.bits * part)
        packed = np.zeros((vectors, blocks, self.bytes), np.uint8)

        def put(values: NDArray[Any], start: int) -> None:
            whole = np.zeros((vectors * lanes, blocks), values.dtype)
            whole[: self.outputs] = values
            rows = whole.reshape(vectors, lanes, blocks).transpose(0, 2, 1)
            flat = np.ascontiguousarray(rows).view(np.uint8)
            packed[:, :, start : start + flat.shape[2]] = flat

        put(scale.astype(np.float32), 0)
        if spec.zeros:
            shift = self.centre or spec.usual_zero
            put((zero - shift).astype(np.int8), lanes * F32.bytes())
        packed[:, :, self.head :] = bytes_.transpose(0, 2, 3, 1, 4).reshape(vectors, blocks, -1)
        return packed.reshape(-1)
