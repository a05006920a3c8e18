"""Copy a tensor from any layout, halo and element type into any other.

Between layouts whose vectors are channels, vectors are copied; to and from NCHW, squares of
pixels x channels are transposed in registers. Elements move as the smaller of the two types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Vec, at_channel
from fastrun.kernels.codegen.quantise import elements, looked_up, numbers
from fastrun.kernels.codegen.tiling import cut, tile_count
from fastrun.kernels.codegen.transpose import PART, cell_side, transpose
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F16, F32, U8
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import NCHW, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check

# Units of channels of a task, its pixels if it moves channels, and its elements if it copies rows:
# long runs of each channel's pixels, whose page and next lines the processor then knows.
UNITS, PIXELS, RUN = 4, 256, 4096
# Tasks to aim at: enough to divide evenly among any number of threads.
TASKS = 8
# Channels up to which whole rows of pixels are put together from rows of channels.
FEW = 4

# Copies `pixels` from the first buffer to the second, each `channels` of a unit.
Move = Callable[[Kernel, Buffer, Buffer, int, int], None]


@dataclass(frozen=True)
class Reorder:
    """Layout, halo and element type of the tensor change; its numbers are only rounded.

    Scales and zero points are an operand. With `lookup` both types are u8, and a table in the
    weights (`kernels.core.scales`) has what each element becomes: the same number on another grid,
    or a function of it.
    """

    lookup: bool = False


@identified
def build(spec: Reorder, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Copy `src` into `dst`; the halo of `dst` stays untouched.

    Raises:
        ScheduleError: the tensors differ in size, or there is no conversion of their types.
    """
    shape = (dst.n, dst.c, dst.h, dst.w)
    check((src.n, src.c, src.h, src.w) == shape, f"reorder from {src} to another size: {dst}")
    types = {src.dtype, dst.dtype}
    known = len(types) == 1 or (F32 in types and bool(types & {U8, BF16, F16}))
    check(known, f"there is no reorder of {src.dtype.name} to {dst.dtype.name}")
    check(not spec.lookup or types == {U8}, "a table has an entry for each number of u8")
    io = Io(src, dst, dst)
    if _same_order(src, dst):
        src, dst = _rows(src), _rows(dst)
    move, unit, step, run = _way(_Moves.of(spec, cpu, src, dst), src, dst)
    # Without a gap between rows a plane is one long row.
    lines, width = (1, src.h * src.w) if src.dense and dst.dense else (src.h, src.w)
    units, tiles = cut(src.c, unit), cut(width, step)
    unit_tasks = -(-tile_count(units) // UNITS)
    others = src.n * lines * unit_tasks
    chunk = max(1, min(run, width * others // TASKS) // step)
    tile_tasks = -(-tile_count(tiles) // chunk)

    module = Module(cpu)

    @module.stage("reorder", others * tile_tasks)
    def write_reorder(k: Kernel, task: Index) -> None:
        group, rest = task % unit_tasks * UNITS, task // unit_tasks
        first, rest = rest % tile_tasks * chunk, rest // tile_tasks
        line, image = rest % lines, rest // lines
        source = k.tensor("src", src).at(image, 0, line)
        target = k.tensor("dst", dst).at(image, 0, line)

        for channels in units:
            with channels.loop(k, group, group + UNITS) as start:
                a = at_channel(source, src, start // unit, unit)
                b = at_channel(target, dst, start // unit, unit)
                for pixels in tiles:
                    with pixels.loop(k, first, first + chunk) as x:
                        move(k, a.at(0, 0, 0, x), b.at(0, 0, 0, x), pixels.size, channels.size)

    return module.program(io)


def _same_order(src: Placement, dst: Placement) -> bool:
    """Whether rows of pixels are the same rows of elements in both."""
    one = src.x_stride == dst.x_stride == 1
    return one or (
        src.layout.name == dst.layout.name
        and (src.x_stride, dst.x_stride) == (src.block, dst.block)
    )


def _rows(where: Placement) -> Placement:
    """Rows of pixels of channels as longer rows of single elements."""
    block = where.block
    top, left, bottom, right = where.halo
    halo = (top, left * block, bottom, right * block)
    planes = -(-where.buffer_c // block)
    return Placement(
        NCHW.of(where.dtype), where.n, where.blocks, where.h, where.w * block, halo, planes,
        where.first // block,
    )  # fmt: skip


def _way(moves: _Moves, src: Placement, dst: Placement) -> tuple[Move, int, int, int]:
    """How elements move: the function, channels of a unit, pixels of a step and of a task."""
    wide = moves.wide
    widest = min(wide, src.layout.blocked or wide, dst.layout.blocked or wide)
    planar = (src.x_stride == 1, dst.x_stride == 1)
    if all(planar):
        return moves.copy_pixels, 1, wide, RUN
    if not any(planar):
        return moves.copy_channels, widest, PART, PIXELS
    if src.c <= FEW and (dst if planar[0] else src).x_stride == src.c:
        return moves.join if planar[0] else moves.separate, src.c, wide, PIXELS
    if moves.side == PART:
        return moves.to_channels if planar[0] else moves.to_pixels, widest, widest, PIXELS
    if planar[0]:
        return moves.to_channels, min(moves.side, widest), wide, PIXELS
    return moves.to_pixels, widest, moves.side, PIXELS


@dataclass(frozen=True)
class _Moves:
    """Ways to copy pixels of channels.

    A register has `wide` elements of the smaller type, 128 bits have `side`. `read` turns what was
    loaded into this type, `write` turns it into what is stored.
    """

    wide: int
    side: int
    read: Callable[[Vec], Vec]
    write: Callable[[Vec], Vec]

    @classmethod
    def of(cls, spec: Reorder, cpu: Cpu, src: Placement, dst: Placement) -> _Moves:
        before, after = src.dtype, dst.dtype
        small = min(before, after, key=lambda dtype: dtype.bits)

        def read(x: Vec) -> Vec:
            return looked_up(x) if spec.lookup else x if before == small else elements(x, after)

        def write(x: Vec) -> Vec:
            return x if after == small else numbers(x)

        return cls(cpu.wide(small), cell_side(small), read, write)

    def lanes_for(self, count: int, least: int = 1) -> int:
        """Lanes of the narrowest vector for `count` elements."""
        return min(self.wide, max(least, 1 << (count - 1).bit_length()))

    def load(self, src: Buffer, count: int, lanes: int, *index: Int) -> Vec:
        """`count` elements in the smaller type; the other lanes are undefined."""
        return self.read(src.load_some(count, *index, lanes=lanes))

    def store(self, dst: Buffer, value: Vec, count: int, *index: Int) -> None:
        """Store the first `count` elements in the type of `dst`."""
        dst.store_first(self.write(value), count, *index)

    def copy_pixels(self, k: Kernel, src: Buffer, dst: Buffer, pixels: int, channels: int) -> None:
        lanes = self.lanes_for(pixels)
        self.store(dst, self.load(src, pixels, lanes, 0, 0, 0, 0), pixels, 0, 0, 0, 0)

    def copy_channels(
        self, k: Kernel, src: Buffer, dst: Buffer, pixels: int, channels: int
    ) -> None:
        lanes = self.lanes_for(channels, PART)
        for x in range(pixels):
            value = self.load(src, channels, lanes, 0, 0, 0, x)
            self.store(dst, value, channels, 0, 0, 0, x)

    def to_channels(self, k: Kernel, src: Buffer, dst: Buffer, pixels: int, channels: int) -> None:
        """Rows of pixels, a channel each, into pixels of channels; missing channels are zero."""
        height = self.lanes_for(channels, PART) if self.side == PART else self.side
        lanes = height if self.side == PART else self.lanes_for(pixels, self.side)
        for x in range(0, pixels, lanes):
            inside = min(lanes, pixels - x)
            rows = [self.load(src, inside, lanes, 0, c, 0, x) for c in range(channels)]
            rows += [k.const(0, lanes, rows[0].dtype)] * (height - channels)
            for i, pixel in enumerate(transpose(k, rows)[:inside]):
                self.store(dst, pixel, channels, 0, 0, 0, x + i)

    def to_pixels(self, k: Kernel, src: Buffer, dst: Buffer, pixels: int, channels: int) -> None:
        """Pixels of channels into rows of pixels, a channel each."""
        lanes = self.lanes_for(channels, self.side)
        height = lanes if self.side == PART else self.side
        for x in range(0, pixels, height):
            inside = min(height, pixels - x)
            found = [self.load(src, channels, lanes, 0, 0, 0, x + i) for i in range(inside)]
            found += [k.const(0, lanes, found[0].dtype)] * (height - inside)
            for c, row in enumerate(transpose(k, found)[:channels]):
                self.store(dst, row, inside, 0, c, 0, x)

    def join(self, k: Kernel, src: Buffer, dst: Buffer, pixels: int, channels: int) -> None:
        """Rows of a few channels into one row of pixels without gaps."""
        whole = 1 << (pixels.bit_length() - 1)
        if PART < whole < pixels:
            # In two parts: LLVM 22 ends the process over two masked rows of 12 pixels in AVX-512.
            self.join(k, src, dst, whole, channels)
            behind = src.at(0, 0, 0, whole), dst.at(0, 0, 0, whole)
            self.join(k, *behind, pixels - whole, channels)
            return
        lanes, size = self.lanes_for(pixels, PART), pixels * channels
        rows = [self.load(src, pixels, lanes, 0, c, 0, 0) for c in range(channels)]
        for first in range(0, size, lanes):
            places = [divmod(i % size, channels) for i in range(first, first + lanes)]
            value = _gathered(k, rows, [(c, pixel) for pixel, c in places])
            self.store(dst, value, min(lanes, size - first), 0, 0, 0, 0, first)

    def separate(self, k: Kernel, src: Buffer, dst: Buffer, pixels: int, channels: int) -> None:
        """One row of pixels without gaps into rows of a few channels."""
        lanes, size = self.lanes_for(pixels, PART), pixels * channels
        pieces = [
            self.load(src, size - first, lanes, 0, 0, 0, 0, first)
            for first in range(0, size, lanes)
        ]
        for c in range(channels):
            places = [divmod(i * channels + c, lanes) for i in range(pixels)]
            places += places[:1] * (lanes - pixels)
            self.store(dst, _gathered(k, pieces, places), pixels, 0, c, 0, 0)


def _gathered(k: Kernel, rows: Sequence[Vec], places: Sequence[tuple[int, int]]) -> Vec:
    """The elements at (row, lane)."""
    first, *others = rows
    found = k.shuffle(first, first, [lane if row == 0 else 0 for row, lane in places])
    for number, other in enumerate(others, 1):
        order = [other.lanes + lane if row == number else i for i, (row, lane) in enumerate(places)]
        found = k.shuffle(found, other, order)
    return found
