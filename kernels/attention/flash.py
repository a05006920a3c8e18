"""Attention in blocks of keys, with the largest score and the sum of powers kept so far.

Only a block's scores exist at a time, so they stay in cache (Dao et al., "FlashAttention", 2022).
"""

from __future__ import annotations

import math

from fastrun.kernels.codegen.micro_kernel import registers
from fastrun.kernels.core.attention import AttentionProblem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.levels import Block, register_tile
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import KernelTemplate
from fastrun.kernels.ops import attention
from fastrun.kernels.ops.attention import Attention, Heads, Schedule


def why_not(p: AttentionProblem, cpu: Cpu) -> str | None:
    return None


def heuristic(p: AttentionProblem, cpu: Cpu) -> Schedule:
    return attention.usual(p.n * p.heads, p.queries, p.values, cpu)


def build(p: AttentionProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    keys = 0 if p.add else p.heads * p.size
    spec = Attention(
        p.heads,
        p.size**-0.5,
        Heads(0, p.size, p.size),
        Heads(keys, p.size, p.size),
        Heads(keys + p.heads * p.size, p.values, p.values),
    )
    context = io.add if p.add else None
    return attention.build(spec, cpu, io.src, io.dst, context, p.mask_shape, schedule=s)


def error(p: AttentionProblem, s: Schedule) -> float:
    """Of scores, which powers multiply, and of sums over all keys, as was measured."""
    return 2.0**-24 * math.sqrt(p.size + p.keys)


def levels(p: AttentionProblem, s: Schedule, cpu: Cpu) -> list[Block]:
    """The blocks of a schedule; keys and values of a block are copied into the second cache."""
    keys = min(s.keys, p.keys)
    tile = register_tile(cpu, "rows, cols", registers(s.rows, s.cols), "sums of a product")
    scores = Block("L1", "rows, keys", "scores of a tile", "", F32.bytes(s.rows * keys))
    panel = F32.bytes(keys * (p.size + p.values))
    return [tile, scores, Block("L2", "keys", "a block of keys and values", "", panel)]


template = KernelTemplate(
    "flash",
    Schedule,
    why_not,
    heuristic,
    build,
    problem=AttentionProblem,
    error=error,
    levels=levels,
)
