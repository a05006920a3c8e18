"""Measured rates of the dot products of small types: what the best inner loop reaches from L1.

Instructions alone would say too little: widening, masking and adding share the pipes with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Buffer, Index, Kernel, Module
from fastrun.kernels.codegen.dot import Dot, dots
from fastrun.kernels.codegen.matrix_tiles import HALVES
from fastrun.kernels.codegen.micro_kernel import outer_product, registers
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16
from fastrun.kernels.core.layout import NCHW, Placement
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.types import Types
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.runner import Buffers, Runner
from fastrun.tuner.machine import tile_rates
from fastrun.tuner.measure.timing import calibrate

# Rows and vectors of register tiles; the best one that fits the registers counts.
TILES = (14, 2), (6, 3), (5, 2), (4, 2), (3, 3), (9, 1), (8, 1)
_TYPES = "u8s8>u8", "u8s4>u8", "bf16"
_STEPS, _PASSES = 32, 64  # steps of K in L1, and how often a task runs through them
_BLOCK, _BLOCKS = 3e-4, 8  # seconds of a block of calls, and how many of them


def kinds(cpu: Cpu) -> set[str]:
    """The kinds of dot product that the processor has, those of tile registers too."""
    return {*_dots(cpu), *tile_rates.products(cpu)}


def dot_rates(cpu: Cpu, cores: Sequence[int]) -> Mapping[str, float]:
    """Operations per second, two a multiply-add, of each kind of dot product that there is.

    Thread t runs on cores[t]; cores[0] is that of the caller.
    """
    found = {name: max(_rates(kind, cpu, cores)) for name, kind in _dots(cpu).items()}
    return found | {name: _tile_rate(name, cpu, cores) for name in tile_rates.products(cpu)}


def _dots(cpu: Cpu) -> dict[str, Dot]:
    return {d.name: d for types in _TYPES for d in dots(Types.parse(types), cpu) if d.name}


def _rates(dot: Dot, cpu: Cpu, cores: Sequence[int]) -> list[float]:
    fit = [t for t in TILES if registers(*t) + dot.registers <= cpu.registers]
    return [_rate(dot, cpu, rows, cols, cores) for rows, cols in fit or [(1, 1)]]


def dot_loop(dot: Dot, cpu: Cpu, rows: int, cols: int, tasks: int) -> Module:
    """A stage of products of a register tile. src holds pixels, weights a panel of weights."""
    module, group, lanes = Module(cpu), dot.group, cpu.lanes

    @module.stage("dot", tasks)
    def write_dot(k: Kernel, _: Index) -> None:
        acc = k.tile(rows, cols, lanes, dot.types.sums)
        acc.fill(k.const(0, lanes, dot.types.sums))
        pixels = k.argument("src", _STEPS * group, group, dtype=dot.types.src)
        packed = k.argument("weights", cols * lanes * group, lanes * group,
                            dtype=dot.types.weights)  # fmt: skip
        with k.loop(_PASSES), k.loop(_STEPS) as step:
            outer_product(
                acc,
                (dot.pixel(pixels, i, step, lanes=lanes) for i in range(rows)),
                (dot.weights(packed, step, j, lanes=lanes) for j in range(cols)),
                dot.add,
            )
        # So that the compiler does not remove the sums.
        out = Buffer(k, "%local", (lanes,), dot.types.sums)
        for n, cell in enumerate(acc):
            out.store(acc[cell], n)

    return module


def _rate(dot: Dot, cpu: Cpu, rows: int, cols: int, cores: Sequence[int]) -> float:
    seconds = _seconds(
        dot_loop(dot, cpu, rows, cols, len(cores)),
        dot.types.src is BF16,
        dot.types.src.bytes(_STEPS * rows * dot.group),
        dot.types.weights.bytes(_STEPS * cols * dot.group * cpu.lanes),
        4 * rows * cols * cpu.lanes,
        cores,
    )
    return 2 * rows * cols * cpu.lanes * dot.group * _STEPS * _PASSES * len(cores) / seconds


def _tile_rate(product: str, cpu: Cpu, cores: Sequence[int]) -> float:
    loop = tile_rates.tile_loop(product, cpu, len(cores))
    held = tile_rates.SIDE * tile_rates.TILE_BYTES
    size = tile_rates.STEPS * held
    seconds = _seconds(loop, product == HALVES, size, size, tile_rates.SIDE * held, cores)
    return tile_rates.operations(product) * len(cores) / seconds


def _seconds(
    module: Module, halves: bool, src: int, weights: int, local: int, cores: Sequence[int]
) -> float:
    """The seconds of a task for each core; operands are random numbers, of so many bytes in all.

    With zeros a processor takes less power, and clocks higher than it ever does at work. Operands
    are numbers of bf16 if they are `halves`, else bytes.
    """
    tasks = len(cores)
    none = Placement(NCHW, 1, 1, 1, 1)
    program = module.program(Io(none, none, none))
    symbols = [stage.symbol for stage in program.stages]
    library = Library(ObjectCache().object(program.ir, module.cpu), symbols)
    runner = Runner(library, program.stages, cores)
    pixels, panel = _random(src + 64, halves), _random(weights + 64, halves)
    sums = np.zeros((tasks, local + 64), np.uint8)
    buffers = Buffers(
        src=_aligned(pixels), weights=_aligned(panel), bias=0, add=0, dst=0, shared=0,
        local=tuple(_aligned(row) for row in sums),
    )  # fmt: skip

    def calls(repeats: int) -> float:
        return runner.run(buffers, tasks, repeats)

    repeats, _ = calibrate(calls, _BLOCK)
    return min(calls(repeats) for _ in range(_BLOCKS)) / repeats


def _random(size: int, halves: bool) -> NDArray[np.uint8]:
    """So many bytes of numbers: any bytes, or normal numbers of bf16."""
    rng = np.random.default_rng(0)
    if halves:
        return BF16.encode(rng.standard_normal(size // 2).astype(np.float32)).view(np.uint8)
    return rng.integers(0, 256, size, np.uint8)


def _aligned(array: np.ndarray) -> int:
    """The address of its first cache line: other vectors would cross lines."""
    return int(array.ctypes.data + -array.ctypes.data % 64)
