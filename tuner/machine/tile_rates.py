"""The loop that tells how fast products in tile registers (AMX) are.

Two by two tiles of sums, operands in L1: four loads for four products, as in a convolution.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastrun.kernels.codegen import matrix_tiles as tiles
from fastrun.kernels.codegen.builder import Index, Kernel, Module
from fastrun.kernels.codegen.dot import has
from fastrun.kernels.codegen.matrix_tiles import ROW_BYTES, ROWS
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import U8

STEPS, PASSES = 4, 64
"""Steps of K in L1, and how often a task runs through them."""

SIDE = 2
"""Tiles of sums in each direction."""

TILE_BYTES = ROWS * ROW_BYTES


def products(cpu: Cpu) -> Iterator[str]:
    """The products that the processor has."""
    return (name for name, feature in tiles.NEEDS.items() if has(cpu, feature))


def operations(product: str) -> int:
    """The operations of a task, two a multiply-add."""
    wide = ROW_BYTES // (1 if product == tiles.BYTES else 2)
    return 2 * SIDE * SIDE * ROWS * ROWS * wide * STEPS * PASSES


def tile_loop(product: str, cpu: Cpu, tasks: int) -> Module:
    """A stage of products: src and weights hold `SIDE` tiles for each of `STEPS`."""
    module = Module(cpu)

    @module.stage("tiles", tasks)
    def write_tiles(k: Kernel, _: Index) -> None:
        sums = [[SIDE * i + j for j in range(SIDE)] for i in range(SIDE)]
        a, b = range(4, 4 + SIDE), range(4 + SIDE, 4 + 2 * SIDE)
        left, right = (
            k.argument(x, SIDE * TILE_BYTES, TILE_BYTES, dtype=U8) for x in ("src", "weights")
        )
        tiles.configure(k, [(ROWS, ROW_BYTES)] * tiles.REGISTERS)
        with k.loop(PASSES), k.loop(STEPS) as step:
            for i in range(SIDE):
                tiles.load(k, a[i], left.address(step, i), ROW_BYTES)
            for j in range(SIDE):
                tiles.load(k, b[j], right.address(step, j), ROW_BYTES)
                for i in range(SIDE):
                    tiles.multiply(k, product, sums[i][j], a[i], b[j])
        out = k.argument("local", TILE_BYTES, dtype=U8)
        for n, tile in enumerate(x for row in sums for x in row):
            tiles.store(k, tile, out.address(n), ROW_BYTES)
        tiles.release(k)

    return module
