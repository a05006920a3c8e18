"""Convolution by products of tile registers (Intel AMX): of bytes, of bf16, and of float32.

A tile of pixels has the channels of a pixel in each row: for stride 1 the pixels of a whole strip
of the image follow each other, with those of the halo between rows. Sums go to a workspace, and get
residual and activation while tiles multiply for the next block of sums.

A float32 number is taken as the sum of `terms` numbers of bf16, the first the number rounded, the
second what is left, rounded, and so on. Three products of pairs, which take 3/16 of the time of one
in float32, then give 16 bits of precision, six give float32's (Henry, Tang and Heinecke,
"Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Index, Kernel, Module
from fastrun.kernels.codegen.dot import has
from fastrun.kernels.codegen.matrix_tiles import ROW_BYTES
from fastrun.kernels.codegen.tile_choice import tiles_per_task
from fastrun.kernels.codegen.tiling import (
    channel_panels,
    check_groups,
    cover,
    task_order,
    tile_count,
)
from fastrun.kernels.conv.amx.copy import (
    Copy,
    check_source,
    copied_rows,
    copy_stage,
    copy_strip,
    whole_copy,
)
from fastrun.kernels.conv.amx.packing import pack
from fastrun.kernels.conv.amx.panel import Panel
from fastrun.kernels.conv.amx.schedule import (
    PAIRS,
    Lines,
    Schedule,
    Window,
    cycles,
    taps_met,
    vector_cycles,
    width_of,
    width_read,
)
from fastrun.kernels.conv.amx.sums import CHANNELS, fits, multiplies, product
from fastrun.kernels.conv.amx.upright import in_strips, stands, upright, upright_io
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F32, I16, U8
from fastrun.kernels.core.levels import Block
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import (
    ROUNDING,
    KernelTemplate,
    check,
    check_sizes,
    summation_error,
)
from fastrun.kernels.core.types import Types

# The share of the time of vectors up to which tiles are preferred.
PAYS = 0.8
# Outputs of a side of Winograd's tile, as far as what it saves is compared; and what its transforms
# take along an axis, in products of a channel with a pixel for each channel (measured).
WINOGRAD, TRANSFORM = 4, 7.0
TILES = 2  # of pixels in a block of sums, as many as of output channels
# Of bytes four tiles of channels fill a cache line. With one of pixels they are a block of sums for
# up to so many steps of K, where more time goes into finishing sums than into products (measured).
_LINE, _FEW = 4, 8
# Pixels of a task for which it pays to keep weights in L1 and let pixels pass (measured).
_MANY = 64
# How many times faster vectors are with products of bytes and with pairs of bf16 (measured).
BYTES, PAIRED = 3.5, 0.5


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.group_oc < CHANNELS // 2 or p.depth < CHANNELS:
        return "a group has too few channels to fill tile registers"
    return None


def takes(types: Types, cpu: Cpu) -> bool:
    """Bytes; and float32 or bf16 input with weights of these types."""
    if cpu.lanes != CHANNELS or types.signs or types.as_int16:
        return False
    if types.integer:
        return types.weights is not I16 and multiplies(cpu, U8)
    # The copy of the input rounds by instructions on vectors.
    return types.weights in (F32, BF16) and multiplies(cpu, BF16) and has(cpu, "avx512bf16")


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    return in_strips(p, _schedule(upright(p), cpu, terms=2 if _of_float32(p) else 1))


def _of_float32(p: ConvProblem) -> bool:
    """Whether numbers are taken as sums of several of bf16."""
    return p.precision.src is p.precision.weights is F32


def careful(p: ConvProblem, cpu: Cpu, max_error: float) -> Schedule:
    """Two numbers of bf16 for each, or three."""
    two = heuristic(p, cpu)
    if error(p, two) <= max_error or two.terms == 1:
        return two
    return in_strips(p, _schedule(upright(p), cpu, terms=3))


def _schedule(p: ConvProblem, cpu: Cpu, terms: int) -> Schedule:
    whole = p.groups == 1 or p.group_c % cpu.block == p.group_oc % cpu.block == 0
    layout = f"NCHW{cpu.block}c" if whole and p.precision.src is F32 else "NHWC"
    window = Window.of(p, Io.of(p, layout).src, terms)
    vectors = -(-p.group_oc // CHANNELS)
    line = p.precision.dst is U8 and window.steps <= _FEW and vectors >= _LINE
    tiles, cols = (1, _LINE) if line else (TILES, min(2, vectors))
    row = width_read(p, tiles) * p.stride[0] * window.row
    strips = not window.in_place and p.kernel[0] == 1
    fit = max(1, cpu.l2 // (4 if strips else 2) // row)
    # Weights of a block of K stay in L1. Where several products share operands it need not be.
    part = cols * window.tile * math.prod(window.kernel)
    most = cpu.l1 * 3 // 4 // part if terms == 1 else window.chunks
    chunks = min(window.chunks, max(1, most))
    panels = -(-vectors // cols)
    # Rows that overlap are not copied again by each task.
    rows = tiles_per_task(p.oh, fit, cpu, images=p.n * p.groups)
    # Weights that L2 does not keep are read once: a panel stays there while the image streams by.
    outer = vectors * window.weight_bytes > cpu.l2 // 2
    if outer:
        rows, panels, strips = min(p.oh, fit), 1, False
    reused = chunks * part >= cpu.l1 // 2 and rows * p.ow >= _MANY
    stream = window.kernel == (1, 1) and (reused or not window.in_place)
    return Schedule(layout, rows, panels, tiles, cols, outer, strips, terms, chunks, stream)


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    if p != upright(p) and stands(io):
        column = build(upright(p), s, cpu, upright_io(io))
        return replace(column, io=io, pack_weights=lambda w: column.pack_weights(w.swapaxes(2, 3)))
    check_sizes(s)
    enough = fits(s.tiles, s.cols, s.terms)
    check(enough, f"{s.tiles}x{s.cols} tiles of sums leave none for operands")
    known = s.terms in PAIRS and (s.terms == 1 or _of_float32(p))
    check(known, f"terms={s.terms}: no {p.precision} has them")
    check(io.dst.layout.name == "NHWC" or io.dst.layout.blocked == CHANNELS,
          f"amx writes NHWC or NCHW{CHANNELS}c, not {io.dst.layout}")  # fmt: skip
    check_groups(p, io)
    window = Window.of(p, io.src, s.terms)
    if window.in_place:
        check(io.src.layout.name == "NHWC", "amx reads integers in NHWC")
    else:
        check_source(io.src)
    tail = p.group_oc % CHANNELS if io.dst.layout.name == "NHWC" else 0
    panels = channel_panels(p.group_oc, CHANNELS, s.cols, split_tail=tail > 0)
    strips = cover(p.oh, s.rows)
    panel_tasks = -(-tile_count(panels) // s.panels)

    module = Module(cpu)
    check(not (s.strips and window.in_place), "input that is read in place is not copied")
    pitch = width_of(io.src)
    lines = [Lines.of(p, s, pitch, rows.size) for rows in strips]
    kept = s.chunks < window.chunks  # sums of all blocks, from one block of K to the next
    sums = s.cols * ROW_BYTES * max(x.height * (x.total if kept else s.tiles) for x in lines)
    copy = whole_copy(p, io.src, window)
    if s.strips:
        copy = Copy(copied_rows(p, strips[0].size), pitch, window)
    if not (window.in_place or s.strips):
        copy_stage(module, p, io.src, window)

    @module.stage("amx", p.n * p.groups * tile_count(strips) * panel_tasks)
    def write_amx(k: Kernel, task: Index) -> None:
        strip, some, rest = task_order(task, tile_count(strips), panel_tasks, s.oc_outer)
        group, image = rest % p.groups, rest // p.groups
        for rows in strips:
            with rows.when(k, strip) as top:
                if s.strips:
                    out = k.argument("local", 1, offset=sums, dtype=U8)
                    copy_strip(k, p, io.src, copy, out, rows.size, image, group, top)
                for run in panels:
                    with run.loop(k, k.index(some * s.panels), some * s.panels + s.panels) as first:
                        last = tail if run is panels[-1] else 0
                        panel = Panel(k, p, s, io, window, panels[-1].end, image, group,
                                      first, run.size, last, copy, sums)  # fmt: skip
                        panel.compute(top, rows.size)

    def packed(w: NDArray[Any]) -> NDArray[Any]:
        return pack(w, p.groups, window, panels)

    if s.strips:
        return module.program(io, packed, 0, sums + copy.size)
    return module.program(io, packed, 0 if window.in_place else p.n * copy.size, sums)


# The rms error of outputs, relative to the outputs' rms, by what so many numbers of bf16 leave out.
_LEFT_OUT = {2: 4e-6, 3: 1e-8}


def error(p: ConvProblem, s: Schedule) -> float:
    """The rms error to expect, as `KernelTemplate.error` says."""
    types = p.precision
    if types.src is F32 and s.terms == 1:  # weights are counted among the types'
        return math.hypot(summation_error(p, s), ROUNDING[BF16])
    return math.hypot(summation_error(p, s), _LEFT_OUT.get(s.terms, 0.0))


def effort(p: ConvProblem, s: Schedule) -> float:
    """The share of the direct method's time to expect."""
    return cycles(upright(p), s) / (taps_met(p) * vector_cycles(p))


def rank(p: ConvProblem, cpu: Cpu) -> int:
    """Preferred where it takes less time than vectors do.

    Winograd's method, which multiplies less, is as fast where few weights are reused by many
    pixels; it reads several times as many weights, which cost most where there are many.
    """
    types = p.precision
    share = effort(p, heuristic(p, cpu))
    if types.integer:
        return 6 if share < PAYS / BYTES else 0
    if types != Types():
        return 6 if share < PAYS / PAIRED else 0
    near = F32.bytes(p.oc * p.depth) <= cpu.l2 // 4
    plain = p.stride == p.dilation == (1, 1) and p.groups == 1
    less = near and plain and max(p.kernel) > 1 and share > winograd(p)
    return (4 if less else 6) if share < PAYS else 0


def winograd(p: ConvProblem) -> float:
    """The share of the direct method's time that Winograd's takes, in tiles of four a side."""
    sides = [k for k in p.kernel if k > 1]
    saved = math.prod(WINOGRAD * k / (WINOGRAD + k - 1) for k in sides)
    return (1 + TRANSFORM * len(sides) * (1 / p.c + 1 / p.oc)) / saved


def products(types: Types, s: Schedule) -> str:
    """The kind of product; of float32 there is none, since several make one."""
    return "" if s.terms > 1 else product(types.src if types.integer else BF16)


def levels(p: ConvProblem, s: Schedule, cpu: Cpu) -> list[Block]:
    """The blocks of a schedule."""
    p = upright(p)
    io = Io.of(p, s.layout)
    window, pitch = Window.of(p, io.src, s.terms), width_of(io.src)
    cols = min(s.cols, -(-p.group_oc // CHANNELS))
    panel = cols * window.weight_bytes
    strip = copied_rows(p, min(s.rows, p.oh)) * pitch * window.row
    found, part = [], panel * min(s.chunks, window.chunks) // window.chunks
    if part <= cpu.l1 and s.terms == 1:
        holds = f"weights of {s.chunks * window.per_chunk} of a panel's input channels"
        found.append(Block("L1", "chunks", holds, "three quarters of L1", part))
    if strip + panel <= cpu.l2:
        holds = f"the input of {min(s.rows, p.oh)} rows, and a panel of weights"
        found.append(Block("L2", "rows, cols", holds, "the input fills half of L2", strip + panel))
    return found


template = KernelTemplate(
    "amx",
    Schedule,
    why_not,
    heuristic,
    build,
    rank=rank,
    takes=takes,
    error=error,
    careful=careful,
    effort=effort,
    levels=levels,
    products=products,
)
