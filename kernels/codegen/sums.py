"""Sums of many terms, within a few units in the last place of float32.

An accumulator rounds with each term to its own last place, so a long sum loses the lower bits of
its terms; from 2^24 equal terms on it does not grow any more. So an accumulator sums only a run of
terms. The sums of runs are added to totals, which keep what was rounded off.
"""

from __future__ import annotations

from collections.abc import Callable

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Tile, Vec
from fastrun.kernels.codegen.elementary import compare
from fastrun.kernels.codegen.micro_kernel import outer_product
from fastrun.kernels.codegen.tiling import cut
from fastrun.kernels.core.dtype import F32

# Terms of a run. Of products there are more: a tile has many sums, so ending a run costs more.
RUN, PRODUCTS = 128, 512
# Products from which a sum is made of runs. Shorter sums err as in every library.
LONG = 4096


class Totals:
    """The totals of a tile's accumulators."""

    def __init__(self, acc: Tile) -> None:
        self._acc = acc
        self._high, self._low = (Tile(acc.k, acc.rows, acc.cols, acc.lanes) for _ in range(2))
        for part in (self._high, self._low):
            part.fill(acc.k.const(0.0, acc.lanes))

    def take_in(self) -> None:
        """Add the accumulators to the totals and set them to zero."""
        for cell in self._acc:
            run, before = self._acc[cell], self._high[cell]
            total = before + run
            # What the addition rounds off is a float again (Knuth's two-sum).
            taken = total - before
            lost = (before - (total - taken)) + (run - taken)
            self._high[cell], self._low[cell] = total, self._low[cell] + lost
        self._acc.fill(self._acc.k.const(0.0, self._acc.lanes))

    def finish(self) -> None:
        """Put the totals into the accumulators."""
        for cell in self._acc:
            high, low = self._high[cell], self._low[cell]
            # For infinite totals the formula gives NaN; nothing was rounded off.
            self._acc[cell] = high.k.blend(compare("uno", low, low), high, high + low)


def add_products(
    k: Kernel,
    acc: Tile,
    rows: Buffer,
    columns: Buffer,
    depth: int,
    unroll: int,
    before: Callable[[Int], None] = lambda f: None,
) -> None:
    """acc[i, j] += the sum of rows[i, f] * columns[f, j] over `depth` terms f.

    `unroll` terms are straight code, and `before(f)` is emitted in front of them. A column is a
    vector, of numbers that may be stored in 16 bits.
    """
    totals = Totals(acc) if depth > LONG else None
    for run in cut(depth, PRODUCTS if totals else depth):
        with run.loop(k) as start:
            for steps in cut(run.size, unroll):
                with steps.unrolled(k) as terms:
                    before(start + terms[0])
                    for term in terms:
                        f = start + term
                        outer_product(
                            acc,
                            (rows.splat(i, f, lanes=acc.lanes) for i in range(acc.rows)),
                            (columns.load(f, j, lanes=acc.lanes).to(F32) for j in range(acc.cols)),
                        )
            if totals:
                totals.take_in()
    if totals:
        totals.finish()


def across(value: Vec, join: Callable[[Vec, Vec], Vec]) -> Vec:
    """All lanes of a vector joined in pairs, as one number."""
    while value.lanes > 1:
        half = value.lanes // 2
        value = join(*(value.k.shuffle(value, value, range(i, i + half)) for i in (0, half)))
    return value
