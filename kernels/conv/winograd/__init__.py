"""Winograd convolution: a block of tiles goes through all three steps while it is in the cache.

The block is transformed into a buffer of its own, multiplied plane by plane with packed transformed
weights, and transformed back, with the epilogue at the store. Vectors hold neighbouring channels of
input and output, and tiles are the rows that are broadcast, so nothing is packed or transposed.

Integers are multiplied as int16 (`rounding`): up to F(4,3) the input transform, the products and
their sums are exact, like those of the direct method. So is float32 where an error of some 1e-4 is
allowed (`f32s16`): products take half as long, and weights have half as many bytes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

from fastrun.kernels.codegen.builder import Index, Int, Kernel, Module, Vec
from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.codegen.micro_kernel import registers
from fastrun.kernels.codegen.reduction import share_met
from fastrun.kernels.codegen.tiling import channel_lanes, check_groups, cover, tile_count
from fastrun.kernels.conv.winograd.parts import Parts, expansion, refusal, widened
from fastrun.kernels.conv.winograd.rounding import OUTPUT_RMS, Rounding, input_is_exact
from fastrun.kernels.conv.winograd.schedule import Schedule
from fastrun.kernels.conv.winograd.steps import LINE, Steps, max_rows, rounds
from fastrun.kernels.conv.winograd.transform import (
    ALPHA,
    POINTS,
    expected_error,
    shared_outputs,
    tile_grid,
    tile_sizes,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, I16, U8
from fastrun.kernels.core.layout import NHWC, Layout, layout_text
from fastrun.kernels.core.levels import Block, register_tile
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import ROUNDING, KernelTemplate, check, check_sizes
from fastrun.kernels.core.types import Types

# Tiles of a block, if there are as many: each block reads all weights.
LEAST = 16

# The largest expected error of the heuristic's tiles: an rms relative to the output's rms.
MAX_ERROR = 2e-5
# How much they may amplify the error of weights that are rounded to 16 bits.
AMPLIFIED = 5.0
# The largest expected error of float32 that is multiplied as int16.
MAX_INT16 = 1e-3
# Channels of the shortest vector of float32 that becomes int16.
WHOLE = 8
# Multiplications that a sum costs whenever it leaves int32.
LEAVING = 12

# The same for integers: an rms in steps of the output, beside that of rounding the output.
MAX_STEPS = 0.1

# The share of the direct method's cost up to which Winograd is faster, since it moves more data.
PAYS = 0.95
# The same for filters in parts, each of which transforms the input anew.
PARTS_PAY = 0.9
# Columns of the direct method's usual tile.
TILE = 9

# Channels added as int32, if all are too many.
CHUNKS = (256, 128, 64)


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if reason := refusal(p):
        return reason
    if _sizes(widened(p)) == [(1, 1)]:
        return f"no axis has both 2 to {ALPHA - 1} taps and several outputs that could share work"
    if p.groups > 1 and p.group_c == 1:
        return "a depthwise convolution sums over no channels"
    if p.precision.as_int16 and p.group_c % WHOLE:
        return f"pairs of int16 are made of whole vectors, so channels are a multiple of {WHOLE}"
    return None


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    return heuristic_with_tile(p, cpu, *_best_sizes(widened(p), _careful(p)))


def careful(p: ConvProblem, cpu: Cpu, max_error: float) -> Schedule:
    """The heuristic's schedule among tiles with an expected error of at most `max_error`."""
    limit = min(max_error, _careful(p))
    return heuristic_with_tile(p, cpu, *_best_sizes(widened(p), limit), limit)


def heuristic_with_tile(
    p: ConvProblem, cpu: Cpu, mh: int, mw: int, max_error: float | None = None
) -> Schedule:
    """The heuristic's schedule for tiles of mh x mw outputs."""
    limit = _careful(p) if max_error is None else max_error
    narrow, block = p.group_c < cpu.block, cpu.block
    integer = p.precision.integer
    grouped = p.groups > 1 and (p.group_c % block or p.group_oc % block)
    layout = Layout("NHWC" if grouped or integer else f"NCHW{block}c")
    # A block would hold more padding than channels, for each part of the filter.
    source = NHWC if narrow and Parts.of(p).count > 1 else layout
    p = widened(p)
    points, chunk = _exact_enough(p, (mh, mw), limit)
    alphas = mh + p.kernel[0] - 1, mw + p.kernel[1] - 1
    tiles = p.n * math.prod(tile_grid(p, (mh, mw)))
    # One plane of a block and its products fit L1 beside a stream of weights, and all planes fit
    # half of L2. But a block has at least sixteen tiles, since each block reads all weights. If L2
    # cannot hold so many, L3 gets the planes of all tiles, and the weights of a pass are read once.
    kind = I16 if rounds(p) else F32
    planes = math.prod(alphas)
    bytes_per_tile = kind.bytes(p.group_c) + F32.bytes(2 * block)
    fit = min(cpu.l1 // bytes_per_tile, cpu.l2 // 2 // (planes * bytes_per_tile))
    everything = kind.bytes(planes * tiles * p.c)
    far = LEAST * planes * bytes_per_tile > cpu.l2 and everything <= cpu.l3 // 2
    if far and not integer:
        fit = min(cpu.l1 // bytes_per_tile, cpu.l2 // 2 // F32.bytes(planes * block))
    enough = 2 * cpu.cores
    blocks = max(-(-tiles // max(LEAST, fit)), min(enough, tiles // LEAST))
    few = blocks * p.groups < enough or (far and not integer)
    if not few:
        blocks = -(-blocks // cpu.cores) * cpu.cores
    nr_tiles = -(-tiles // blocks)
    dot = dots(Types.pairs(), cpu)[0] if rounds(p) else None
    vectors = -(-p.group_oc // channel_lanes(p.group_oc, layout, cpu))
    weight_bytes = kind.bytes(planes * p.c * p.group_oc)
    return Schedule(
        layout=layout_text(source, layout),
        mh=mh,
        mw=mw,
        points=points,
        nr_tiles=nr_tiles,
        cols=_best_cols(nr_tiles, vectors, cpu, dot.registers if dot else 0),
        unroll=4,
        oc_block=1,
        # A stream from memory is faster without software prefetch: see also `streaming`.
        prefetch=64 if weight_bytes < cpu.l3 // 2 else 0,
        split="channels" if few else "tiles",
        dot=dot.name if dot else "",
        chunk=chunk,
    )


def levels(p: ConvProblem, s: Schedule, cpu: Cpu) -> list[Block]:
    """The blocks of a schedule."""
    steps = Steps.of(p, s, cpu, Io.of(p, s.layout))
    tiles, passed = steps.blocks[0].size, min(s.oc_block, tile_count(steps.panels))
    rows = min(steps.rows, tiles)
    width = steps.panels[0].size
    plane = steps.element.bytes(tiles * steps.p.group_c)
    through = F32.bytes(tiles * width * steps.lanes)
    of_pass = steps.product_bytes
    taken = registers(rows, width) + steps.dot.registers
    held = f"sums of {rows} tiles by {width} vectors of channels"
    found = [register_tile(cpu, "cols", taken, held)]
    if plane + through <= cpu.l1:
        holds = f"a plane of {tiles} tiles, and its products with a panel"
        formula = "plane, products and a panel's line fill L1"
        found.append(Block("L1", "nr_tiles", holds, formula, plane + through))
    if s.split == "tiles":
        holds = f"all {steps.planes} planes of {tiles} tiles, and the products of a pass"
        size = steps.input_bytes + of_pass
        if size <= cpu.l2:
            formula = "the planes fill half of L2, or are of sixteen tiles"
            found.append(Block("L2", "nr_tiles, oc_block", holds, formula, size))
            return found
        # L2 is too small for the planes of so many tiles, and L3 for those of all.
        formula = "sixteen tiles, since each block reads all weights"
        found.append(Block("L3", "nr_tiles", holds, formula, size))
    else:
        blocks = tile_count(steps.blocks)
        holds = f"all planes of {blocks} blocks of tiles, which each pass reads again"
        size = p.groups * blocks * steps.input_bytes
        found.append(Block("L3", "split", holds, "the planes of all tiles", size))
    holds = f"the products of {passed} panels and {tiles} tiles"
    found.append(Block("L2", "oc_block, nr_tiles", holds, "the products fill half of L2", of_pass))
    return found


def _best_cols(tiles: int, vectors: int, cpu: Cpu, further: int) -> int:
    """Vectors of the narrowest panel whose smallest register tile has enough accumulators.

    Products need `further` registers beside the tile.
    """
    # A panel of one vector loads more than it multiplies, unless an instruction can broadcast its
    # operand from memory (AVX-512). Then more sums must be in flight to hide the loads of weights.
    narrowest, enough = (1, 12) if cpu.lanes == LINE else (2, 10)

    def accumulators(cols: int) -> int:
        return min(enough, cover(tiles, max_rows(cols, cpu, further))[-1].size * cols)

    return max(range(min(narrowest, vectors), min(4, vectors) + 1), key=accumulators)


def _best_sizes(p: ConvProblem, limit: float) -> tuple[int, int]:
    """The tile with the lowest cost whose expected error is within `limit`.

    Integers get a tile whose input transform is exact.
    """
    chosen = {m: _exact_enough(p, m, limit) for m in _sizes(p) if m != (1, 1)}
    sizes = sorted(chosen, key=lambda m: _cost(p, m, chosen[m][1]))
    if p.precision.integer:
        sizes = [m for m in sizes if input_is_exact(p, m)] or sizes
    errors = (_error(p, m, *chosen[m]) for m in sizes)
    cheapest = next((m for m, error in zip(sizes, errors, strict=True) if error <= limit), None)
    return cheapest or min(sizes, key=lambda m: _error(p, m, *chosen[m]))


def _cost(p: ConvProblem, m: tuple[int, int], chunk: str = "") -> float:
    """What tiles of this size cost, in multiplications.

    A transform costs about 6 multiplications per element and channel; a weight, which streams from
    L3, about 5, or 2 if it is int16. Two products of int16 cost as much as one of float32.
    """
    reading = 2 if rounds(p) else 5
    tiles = p.n * math.prod(tile_grid(p, m))
    planes = (m[0] + p.kernel[0] - 1) * (m[1] + p.kernel[1] - 1)
    products = p.c * p.group_oc
    if p.precision.as_int16:
        leaving = LEAVING / int(chunk) if chunk else 0.0
        each = (1 + leaving) / 2 * products + 6 * (p.c + p.oc)
        return planes * (tiles * each + reading * products)
    return planes * (tiles * (products + 6 * (p.c + p.oc)) + reading * products)


def _direct_cost(p: ConvProblem) -> float:
    """The same of the direct method, whose tiles skip padding."""
    met = share_met(p, 0, 1) * share_met(p, 1, min(p.ow, TILE))
    return p.c * p.group_oc * math.prod(p.kernel) * (p.n * p.oh * p.ow * met + 5)


def largest_error(p: ConvProblem) -> float:
    """The largest expected error of int16 products, as `KernelTemplate.error` says it."""
    if p.precision.as_int16:
        return MAX_INT16
    return MAX_STEPS if p.precision.dst is U8 else MAX_STEPS / OUTPUT_RMS


def _careful(p: ConvProblem) -> float:
    """The largest expected error of the heuristic's tiles. Weights of integers may be unusual."""
    rounding = ROUNDING.get(p.precision.weights, 0.0)
    if p.precision.integer:
        return largest_error(p) / 2
    if p.precision.as_int16:
        return MAX_INT16
    return AMPLIFIED * rounding if rounding else MAX_ERROR


def _exact_enough(p: ConvProblem, m: tuple[int, int], limit: float) -> tuple[str, str]:
    """Points and chunk for a tile: the longest chunk whose expected error is within a limit."""
    if not rounds(p):
        return "balanced", ""
    shorter = [str(n) for n in CHUNKS if n < p.group_c]
    for chunk in ["", *shorter]:
        points = min(reversed(POINTS), key=lambda name: _error(p, m, name, chunk))
        if _error(p, m, points, chunk) <= limit:
            break
    return points, chunk


def _error(p: ConvProblem, m: tuple[int, int], points: str, chunk: str) -> float:
    """The rms error to expect, as `KernelTemplate.error` says.

    Points that there are not are infinitely bad.
    """
    try:
        of_sums = expected_error(p, m, points)
    except ValueError:
        return math.inf
    if not rounds(p):
        return of_sums
    rounding = Rounding.of(p, m, points, chunk)
    steps = OUTPUT_RMS if p.precision.dst is U8 else 1
    return math.hypot(of_sums * steps, rounding.error(p))


def _sizes(p: ConvProblem) -> list[tuple[int, int]]:
    down, across = shared_outputs(p)
    return [*product(tile_sizes(p.kernel[0], down), tile_sizes(p.kernel[1], across))]


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check(s.split in ("tiles", "channels"), f"split {s.split!r}: use tiles or channels")
    check_sizes(s, "prefetch")
    check("NCHW" not in (io.src.layout.name, io.dst.layout.name), "winograd takes NHWC or NCHWc")
    check_groups(p, io)
    w = Steps.of(p, s, cpu, io)
    blocks = tile_count(w.blocks)
    module = Module(cpu)
    measured = p.precision.as_int16
    if s.split == "channels":
        room = p.groups * blocks * w.input_bytes
        sizes = F32.count(room) if measured else 0
        if measured:

            @module.stage("winograd_largest", p.groups * blocks)
            def write_winograd_largest(k: Kernel, task: Index) -> None:
                found = w.largest(k, task % blocks, task // blocks % p.groups)
                k.argument("shared", LINE, offset=sizes).store(found, task)

            room += F32.bytes(LINE) * p.groups * blocks

        def largest(k: Kernel, number: Int) -> Vec | None:
            """The largest input of a block, which the first stage found."""
            where = k.argument("shared", LINE, offset=sizes)
            return where.load(number, lanes=1) if measured else None

        @module.stage("winograd_input", p.groups * blocks * w.input_vectors)
        def write_winograd_input(k: Kernel, task: Index) -> None:
            vector, rest = task % w.input_vectors, task // w.input_vectors
            block, group = rest % blocks, rest // blocks % p.groups
            planes = k.argument("shared", w.input_size, dtype=w.element).at(rest)
            w.transform_input(k, block, group, vector, planes, largest(k, rest))

        @module.stage("winograd_output", p.groups * w.passes * blocks)
        def write_winograd_output(k: Kernel, task: Index) -> None:
            block, rest = task % blocks, task // blocks
            number, group = rest % w.passes, rest // w.passes % p.groups
            strides = blocks * w.input_size, w.input_size
            planes = k.argument("shared", *strides, dtype=w.element).at(group, block)
            products = k.argument("local")
            w.multiply(k, block, group, number, planes, products)
            measure = largest(k, group * blocks + block)
            w.transform_output(k, block, group, number, products, measure)

        return module.program(io, w.pack, room, w.product_bytes)

    @module.stage("winograd", p.groups * blocks)
    def write_winograd(k: Kernel, task: Index) -> None:
        block, group = task % blocks, task // blocks % p.groups
        planes = k.argument("local", dtype=w.element)
        measure = w.largest(k, block, group) if measured else None
        with k.loop(w.input_vectors) as vector:
            w.transform_input(k, block, group, vector, planes, measure)
        with k.loop(w.passes) as number:
            products = k.argument("local", offset=F32.count(w.input_bytes))
            w.multiply(k, block, group, number, planes, products)
            w.transform_output(k, block, group, number, products, measure)

    return module.program(io, w.pack, local_bytes=w.input_bytes + w.product_bytes)


def rank(p: ConvProblem, cpu: Cpu) -> int:
    """Preferred with enough channels to pay for the transforms; along one axis they save less.

    Products of bytes, where the processor has them, are twice as fast as those of int16: then
    Winograd saves too little along one axis, or if few tiles share the larger weights. Where most
    taps lie in padding, as with wide dilations, the direct method has less to do.
    """
    whole, p = p, widened(p)
    least = 8 if min(p.kernel) > 1 else 32
    pays = max(p.kernel) <= 7 and min(p.group_c, p.group_oc) >= least
    if p.precision.integer and not dots(p.precision, cpu)[0].widens:
        tiles = p.n * math.prod(tile_grid(p, (4, 4)))
        pays &= min(p.kernel) > 1 and min(p.group_c, p.group_oc) >= 16 and tiles >= 8
    if pays and not p.precision.integer:
        most = (PAYS if p is whole else PARTS_PAY) * _direct_cost(whole)
        pays = _cost(p, _best_sizes(p, _careful(p))) < most
    return 5 if pays else 0


def grain(p: ConvProblem, s: Schedule) -> int:
    """The rows of a block of tiles, for which the weights are read once."""
    if s.split == "channels" or p.dilation[0] > 1:
        return p.oh
    return s.mh * -(-s.nr_tiles // tile_grid(widened(p), (s.mh, s.mw))[1])


def streaming(p: ConvProblem, s: Schedule) -> Schedule:
    """Without prefetch, which only delays a stream from memory.

    Blocks of tiles that read all weights one after another find them in L3 from the second on.
    """
    return replace(s, prefetch=0) if s.split == "channels" and not p.types else s


def takes(types: Types, cpu: Cpu) -> bool:
    """Float32 input that counts by more than its signs, and integers by products of int16."""
    if types.integer or types.as_int16:
        return bool(dots(Types.pairs(), cpu))
    return types.src is F32 and not types.signs


template = KernelTemplate(
    "winograd",
    Schedule,
    why_not,
    heuristic,
    build,
    rank,
    rows_alike=False,
    grain=grain,
    takes=takes,
    error=lambda p, s: _error(widened(p), (s.mh, s.mw), s.points, s.chunk),
    careful=careful,
    streaming=streaming,
    levels=levels,
    effort=lambda p, s: _cost(widened(p), (s.mh, s.mw), s.chunk) / _direct_cost(p),
    expansion=lambda p, s: expansion(
        p, math.prod(m + k - 1 for m, k in zip((s.mh, s.mw), widened(p).kernel, strict=True))
    ),
)
