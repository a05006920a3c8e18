"""Copy a tensor from any layout and halo into any other.

Between layouts whose vectors are channels, vectors are copied; to and from NCHW, squares of
pixels x channels are transposed in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Buffer, Kernel, Module, at_channel
from fastrun.kernels.codegen.tiling import cut, tile_count
from fastrun.kernels.codegen.transpose import PART, transpose
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check

# Pixels and units of channels of a task: some 16 KB, which L1 holds.
PIXELS, UNITS = 64, 4

# Copies `pixels` from the first buffer to the second, each `channels` of a unit.
Move = Callable[[Kernel, Buffer, Buffer, int, int], None]


@dataclass(frozen=True)
class Reorder:
    """Only the layout and the halo of the tensor change."""


def build(spec: Reorder, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Copy `src` into `dst`; the halo of `dst` stays untouched.

    Raises:
        ScheduleError: the tensors differ in size.
    """
    shape = (dst.n, dst.c, dst.h, dst.w)
    check((src.n, src.c, src.h, src.w) == shape, f"reorder from {src} to another size: {dst}")
    widest = min(cpu.lanes, src.layout.blocked or cpu.lanes, dst.layout.blocked or cpu.lanes)
    planar = (src.layout == NCHW, dst.layout == NCHW)
    unit = 1 if all(planar) else widest
    step = {(True, True): cpu.lanes, (False, False): PART}.get(planar, widest)
    move: Move = {
        (True, True): _copy_pixels,
        (True, False): _to_channels,
        (False, True): _to_pixels,
        (False, False): _copy_channels,
    }[planar]
    # Without a gap between rows a plane is one long row.
    lines, width = (1, src.h * src.w) if src.dense and dst.dense else (src.h, src.w)
    units, tiles = cut(src.c, unit), cut(width, step)
    unit_tasks = -(-tile_count(units) // UNITS)
    chunk = PIXELS // step
    tile_tasks = -(-tile_count(tiles) // chunk)

    module = Module(cpu)
    with module.stage("reorder", src.n * lines * tile_tasks * unit_tasks) as (k, task):
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
    return module.program(Io(src, dst, dst))


def _copy_pixels(k: Kernel, src: Buffer, dst: Buffer, pixels: int, channels: int) -> None:
    dst.store_first(src.load_first(pixels, 0, 0, 0, 0), pixels, 0, 0, 0, 0)


def _copy_channels(k: Kernel, src: Buffer, dst: Buffer, pixels: int, channels: int) -> None:
    lanes = max(PART, k.cpu.lanes_for(channels))
    for x in range(pixels):
        dst.store_first(src.load_first(channels, 0, 0, 0, x, lanes=lanes), channels, 0, 0, 0, x)


def _to_channels(k: Kernel, src: Buffer, dst: Buffer, pixels: int, channels: int) -> None:
    """Rows of pixels, a channel each, into pixels of channels; missing channels are zero."""
    lanes = max(PART, k.cpu.lanes_for(channels))
    for x in range(0, pixels, lanes):
        inside = min(lanes, pixels - x)
        rows = [src.load_first(inside, 0, c, 0, x, lanes=lanes) for c in range(channels)]
        rows += [k.const(0.0, lanes)] * (lanes - channels)
        for i, pixel in enumerate(transpose(k, rows)[:inside]):
            dst.store_first(pixel, channels, 0, 0, 0, x + i)


def _to_pixels(k: Kernel, src: Buffer, dst: Buffer, pixels: int, channels: int) -> None:
    """Pixels of channels into rows of pixels, a channel each."""
    lanes = max(PART, k.cpu.lanes_for(channels))
    for x in range(0, pixels, lanes):
        inside = min(lanes, pixels - x)
        found = [src.load_first(channels, 0, 0, 0, x + i, lanes=lanes) for i in range(inside)]
        found += [k.const(0.0, lanes)] * (lanes - inside)
        for c, row in enumerate(transpose(k, found)[:channels]):
            dst.store_first(row, inside, 0, c, 0, x)
