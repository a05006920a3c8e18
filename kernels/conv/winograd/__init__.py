"""Winograd convolution: a block of tiles goes through all three steps while it is in the cache.

The block is transformed into a buffer of its own, multiplied plane by plane with packed transformed
weights, and transformed back, with the epilogue at the store. Vectors hold neighbouring channels of
input and output, and tiles are the rows that are broadcast, so nothing is packed or transposed.
"""

from __future__ import annotations

import math
from itertools import product

from fastrun.kernels.codegen.builder import Module
from fastrun.kernels.codegen.tiling import channel_lanes, check_groups, cover, tile_count
from fastrun.kernels.conv.winograd.schedule import Schedule
from fastrun.kernels.conv.winograd.steps import LINE, Steps, max_rows
from fastrun.kernels.conv.winograd.transform import (
    ALPHA,
    expected_error,
    shared_outputs,
    tile_grid,
    tile_sizes,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import Layout
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import ROUNDING, KernelTemplate, check, check_sizes

# The largest expected error of the heuristic's tiles: an rms relative to the output's rms.
MAX_ERROR = 2e-5
# How much they may amplify the error of weights that are rounded to 16 bits.
AMPLIFIED = 5.0


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.stride != (1, 1):
        return "Winograd needs stride 1"
    if _sizes(p) == [(1, 1)]:
        return f"no axis has both 2 to {ALPHA - 1} taps and several outputs that could share work"
    if p.groups > 1 and p.group_c == 1:
        return "a depthwise convolution sums over no channels"
    return None


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    return heuristic_with_tile(p, cpu, *_best_sizes(p))


def heuristic_with_tile(p: ConvProblem, cpu: Cpu, mh: int, mw: int) -> Schedule:
    """The heuristic's schedule for tiles of mh x mw outputs."""
    block = cpu.block
    grouped = p.groups > 1 and (p.group_c % block or p.group_oc % block)
    layout = Layout("NHWC" if grouped else f"NCHW{block}c")
    alphas = mh + p.kernel[0] - 1, mw + p.kernel[1] - 1
    tiles = p.n * math.prod(tile_grid(p, (mh, mw)))
    # One plane of a block and its products fit L1 beside a stream of weights, and all planes fit
    # half of L2. But a block has at least sixteen tiles, since each block reads all weights.
    bytes_per_tile = F32.bytes(p.group_c + 2 * block)
    fit = min(cpu.l1 // bytes_per_tile, cpu.l2 // 2 // (math.prod(alphas) * bytes_per_tile))
    enough = 2 * cpu.cores
    blocks = max(-(-tiles // max(16, fit)), min(enough, tiles // 16))
    few = blocks * p.groups < enough
    if not few:
        blocks = -(-blocks // cpu.cores) * cpu.cores
    nr_tiles = -(-tiles // blocks)
    weight_bytes = F32.bytes(math.prod(alphas) * p.c * p.group_oc)
    return Schedule(
        layout=str(layout),
        mh=mh,
        mw=mw,
        points="balanced",
        nr_tiles=nr_tiles,
        cols=_best_cols(nr_tiles, -(-p.group_oc // channel_lanes(p.group_oc, layout, cpu)), cpu),
        unroll=4,
        oc_block=1,
        # A stream from memory is faster without software prefetch.
        prefetch=64 if weight_bytes < cpu.l3 // 2 else 0,
        split="channels" if few else "tiles",
    )


def _best_cols(tiles: int, vectors: int, cpu: Cpu) -> int:
    """Vectors of the narrowest panel whose smallest register tile has enough accumulators."""
    # A panel of one vector loads more than it multiplies, unless an instruction can broadcast its
    # operand from memory (AVX-512). Then more sums must be in flight to hide the loads of weights.
    narrowest, enough = (1, 12) if cpu.lanes == LINE else (2, 10)

    def accumulators(cols: int) -> int:
        return min(enough, cover(tiles, max_rows(cols, cpu))[-1].size * cols)

    return max(range(min(narrowest, vectors), min(4, vectors) + 1), key=accumulators)


def _best_sizes(p: ConvProblem) -> tuple[int, int]:
    """The tile with the lowest cost, in multiplications, whose expected error is small enough.

    A transform costs about 6 multiplications per element and channel; a weight, which streams from
    L3, about 5.
    """

    def cost(m: tuple[int, int]) -> int:
        tiles = p.n * math.prod(tile_grid(p, m))
        planes = (m[0] + p.kernel[0] - 1) * (m[1] + p.kernel[1] - 1)
        products = p.c * p.group_oc
        return planes * (tiles * (products + 6 * (p.c + p.oc)) + 5 * products)

    rounding = ROUNDING.get(p.precision.weights, 0.0)
    most = AMPLIFIED * rounding if rounding else MAX_ERROR
    exact = [m for m in _sizes(p) if m != (1, 1) and expected_error(p, m) <= most]
    return min(exact, key=cost)


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
    if s.split == "channels":
        with module.stage("winograd_input", p.groups * blocks * w.input_vectors) as (k, task):
            vector, rest = task % w.input_vectors, task // w.input_vectors
            block, group = rest % blocks, rest // blocks % p.groups
            planes = k.argument("shared", w.input_floats).at(rest)
            w.transform_input(k, block, group, vector, planes)
        with module.stage("winograd_output", p.groups * w.passes * blocks) as (k, task):
            block, rest = task % blocks, task // blocks
            number, group = rest % w.passes, rest // w.passes % p.groups
            planes = k.argument("shared", blocks * w.input_floats, w.input_floats).at(group, block)
            products = k.argument("local")
            w.multiply(k, block, group, number, planes, products)
            w.transform_output(k, block, group, number, products)
        shared = F32.bytes(p.groups * blocks * w.input_floats)
        return module.program(io, w.pack, shared, F32.bytes(w.product_floats))
    with module.stage("winograd", p.groups * blocks) as (k, task):
        block, group = task % blocks, task // blocks % p.groups
        planes = k.argument("local")
        with k.loop(w.input_vectors) as vector:
            w.transform_input(k, block, group, vector, planes)
        with k.loop(w.passes) as number:
            products = k.argument("local", offset=w.input_floats)
            w.multiply(k, block, group, number, planes, products)
            w.transform_output(k, block, group, number, products)
    return module.program(io, w.pack, local_bytes=F32.bytes(w.input_floats + w.product_floats))


def rank(p: ConvProblem, cpu: Cpu) -> int:
    """Preferred with enough channels to pay for the transforms; along one axis they save less."""
    least = 8 if min(p.kernel) > 1 else 32
    pays = max(p.kernel) <= 7 and min(p.group_c, p.group_oc) >= least
    return 5 if pays else 0


def grain(p: ConvProblem, s: Schedule) -> int:
    """The rows of a block of tiles, for which the weights are read once."""
    if s.split == "channels" or p.dilation[0] > 1:
        return p.oh
    return s.mh * -(-s.nr_tiles // tile_grid(p, (s.mh, s.mw))[1])


template = KernelTemplate(
    "winograd",
    Schedule,
    why_not,
    heuristic,
    build,
    rank,
    takes=lambda types, cpu: types.src is F32,
    rows_alike=False,
    grain=grain,
    error=lambda p, s: expected_error(p, (s.mh, s.mw), s.points),
)
