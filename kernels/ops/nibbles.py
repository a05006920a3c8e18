"""Fully connected layers with weights of four bits: y = activation(W x + b) for a few vectors x.

Along the features, a block of neighbours shares a scale and a zero point: w = (q - zero) * scale
with q from 0 to 15, as in ONNX's MatMulNBits. Weights stay packed in memory, two to a byte, and
become float32 in registers. The time is that of reading them, an eighth of that of float32 and the
scales.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Tile, Vec, fma
from fastrun.kernels.codegen.epilogue import activate
from fastrun.kernels.codegen.micro_kernel import outer_product
from fastrun.kernels.codegen.tiling import channel_panels, cover, tile_count
from fastrun.kernels.codegen.values import Vectors
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, I32, S8, U8
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.processors import features_of
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check

# Weights of a lane in one word of 32 bits, and what is subtracted from each, so that it has a sign.
WORD, CENTRE = 8, 8

# Panels read at the same time, and images that share a reading.
STREAMS, IMAGES = 4, 4


@dataclass(frozen=True)
class Nibbles:
    """`block` features share a scale; with `zeros` also a zero point, which else is 8."""

    block: int
    zeros: bool = False
    bias: bool = False
    activation: str = ""


@identified
def build(spec: Nibbles, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Multiply every image of `src`, flattened, into the dst.c values of `dst`.

    The program packs what `operands` gives.

    Raises:
        ScheduleError: the images differ in number, `dst` is not one pixel without a halo, features
            of `src` do not follow one another in memory, or blocks are not of whole words.
    """
    check(src.n == dst.n, f"dense cannot turn {src.n} images into {dst.n}")
    single = (dst.h, dst.w, dst.halo) == (1, 1, (0, 0, 0, 0))
    check(single, "dense writes images of one pixel without a halo")
    depth = src.c * src.h * src.w
    flat = src.layout.name == "NCHW" or (src.h, src.w) == (1, 1)
    check(flat and src.n_stride == depth, "features do not follow one another in memory")
    check(spec.block % WORD == 0, f"a block of {spec.block} weights is not whole words of {WORD}")
    images = cover(src.n, IMAGES)
    # A sum of a block and a sum of all for each vector, and some to unpack weights.
    streams = min(STREAMS, max(1, (cpu.registers - 4) // (2 * images[0].size + 1)))
    panels = channel_panels(dst.c, cpu.lanes, streams, split_tail=True)
    form = _Blocks(spec, cpu.lanes, depth)

    module = Module(cpu)

    @module.stage("nibbles", tile_count(panels))
    def write_nibbles(k: Kernel, task: Index) -> None:
        weights = k.argument("weights", form.blocks * form.bytes, form.bytes, 1, dtype=U8)
        bias = k.argument("bias", cpu.lanes)
        out = k.argument("dst", dst.n_stride, cpu.lanes, offset=dst.origin)
        for panel in panels:
            with panel.when(k, task) as first:
                tail = dst.c % cpu.lanes if panel is panels[-1] else 0
                for run in images:
                    with run.loop(k) as image:
                        total = k.tile(run.size, panel.size)
                        for i, j in total:
                            total[i, j] = bias.load(first + j) if spec.bias else k.const(0.0)
                        x = k.argument("src", depth, 1).at(image)
                        full, rest = divmod(depth, spec.block)
                        if full:
                            with k.times(full) as block:
                                form.add(k, total, x, weights.at(first, block), block, spec.block)
                        if rest:
                            form.add(k, total, x, weights.at(first, full), full, rest)
                        for i, j in total:
                            kept = tail if tail and j == panel.size - 1 else cpu.lanes
                            value = activate(total[i, j], spec.activation)
                            out.store_first(value, kept, image + i, first + j)

    return module.program(Io(src, dst, dst), form.pack)


def operands(stored: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> NDArray[np.float32]:
    """What a program packs: `stored` (outputs, features), scales and zeros (outputs, blocks)."""
    return np.concatenate([stored, scale, zero], axis=1).astype(np.float32)


@dataclass(frozen=True)
class _Blocks:
    """Packed blocks of `lanes` outputs: scales as float32, zero points as s8, words of weights."""

    spec: Nibbles
    lanes: int
    depth: int

    @property
    def blocks(self) -> int:
        """Blocks of an output, the last of which may be shorter."""
        return -(-self.depth // self.spec.block)

    @property
    def head(self) -> int:
        """Bytes from a block to its words."""
        return self.lanes * (F32.bytes() + self.spec.zeros)

    @property
    def bytes(self) -> int:
        """Bytes from a block to the next one."""
        return self.head + self.lanes * self.spec.block // 2

    def add(self, k: Kernel, total: Tile, x: Buffer, block: Buffer, number: Int, size: int) -> None:
        """Add the products of block `number`, which has `size` features, to the totals."""
        places = [block.at(j) for j in range(total.cols)]
        acc = k.tile(total.rows, total.cols)
        acc.fill(k.const(0.0))
        zeros: list[Vec] = []
        if self.spec.zeros:
            behind = self.lanes * F32.bytes()
            for at in places:
                found = replace(at.strided(1).at(behind), dtype=S8).load(lanes=self.lanes)
                zeros.append(found.to(F32))
        for word in range(-(-size // WORD)):
            words = [self._word(at, word) for at in places]
            for i in range(min(WORD, size - word * WORD)):
                feature = number * self.spec.block + (word * WORD + i)
                weights = [_weights(bits, i) for bits in words]
                if zeros:
                    weights = [w - zero for w, zero in zip(weights, zeros, strict=True)]
                pixels = (x.splat(image, feature, lanes=self.lanes) for image in range(acc.rows))
                outer_product(acc, pixels, weights)
        for j, at in enumerate(places):
            scale = replace(at.strided(1), dtype=F32).load(lanes=self.lanes)
            for i in range(acc.rows):
                total[i, j] = fma(acc[i, j], scale, total[i, j])

    def _word(self, block: Buffer, number: int) -> Vec:
        at = block.strided(1).at(self.head + number * self.lanes * I32.bytes())
        return replace(at, dtype=I32).load(lanes=self.lanes)

    def pack(self, given: NDArray[Any]) -> NDArray[Any]:
        """`operands` in reading order."""
        outputs, block = len(given), self.spec.block
        vectors, blocks = -(-outputs // self.lanes), self.blocks
        stored, scale, zero = np.split(given, [self.depth, self.depth + blocks], axis=1)
        padded = np.zeros((vectors * self.lanes, blocks * block), np.uint8)
        # Two's complement of four bits.
        padded[:outputs, : self.depth] = (stored.astype(np.int16) - CENTRE) & 15
        each = padded.reshape(vectors, self.lanes, blocks, block // 2, 2)
        bytes_ = each[..., 0] | each[..., 1] << 4
        words = bytes_.reshape(vectors, self.lanes, blocks, block // WORD, 4)
        packed = np.zeros((vectors, blocks, self.bytes), np.uint8)

        def put(values: NDArray[Any], start: int) -> None:
            whole = np.zeros((vectors * self.lanes, blocks), values.dtype)
            whole[:outputs] = values
            rows = np.ascontiguousarray(
                whole.reshape(vectors, self.lanes, blocks).transpose(0, 2, 1)
            ).view(np.uint8)
            packed[:, :, start : start + rows.shape[2]] = rows

        put(scale.astype(np.float32), 0)
        if self.spec.zeros:
            put((zero - CENTRE).astype(np.int8), self.lanes * F32.bytes())
        packed[:, :, self.head :] = words.transpose(0, 2, 3, 1, 4).reshape(vectors, blocks, -1)
        return packed.reshape(-1)


def _weights(words: Vec, number: int) -> Vec:
    """The `number`-th weight of each word as float32."""
    k = words.k
    if words.lanes == 16 and "avx512f" in features_of(k.cpu):
        # The instruction reads only the lowest four bits of an index.
        index = k.shifted(words, "lshr", 4 * number) if number else words
        return k.target("llvm.x86.avx512.permvar.sf.512", F32, 16, _table(k), index)
    high = k.shifted(words, "shl", 28 - 4 * number) if number < WORD - 1 else words
    return k.shifted(high, "ashr", 28).to(F32)


def _table(k: Vectors) -> Vec:
    """The values of two's complement numbers of four bits."""
    return k.literal([*range(8), *range(-8, 0)])
