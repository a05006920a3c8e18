"""Sums of many terms, within a few units in the last place of float32.

An accumulator rounds each term to its own last place, so a long sum loses what its terms have
below that: all of it from 2^24 equal ones on. So an accumulator takes in a run of terms only, and
totals that remember what was rounded off take in the runs.
"""

from __future__ import annotations

from fastrun.kernels.codegen.builder import Buffer, Kernel, Tile
from fastrun.kernels.codegen.elementary import compare
from fastrun.kernels.codegen.micro_kernel import outer_product
from fastrun.kernels.codegen.tiling import cut

# Terms of a run; of products, of which a tile has many sums, more are cheaper.
RUN, PRODUCTS = 128, 512
# Products whose sum is made of runs: below, errors are those of every library.
LONG = 4096


class Totals:
    """The totals of a tile's accumulators, which start from what these are added to."""

    def __init__(self, acc: Tile) -> None:
        self._acc = acc
        self._high, self._low = (Tile(acc.k, acc.rows, acc.cols, acc.lanes) for _ in range(2))
        for part in (self._high, self._low):
            part.fill(acc.k.const(0.0, acc.lanes))

    def take_in(self) -> None:
        """Add what the accumulators hold, and empty them."""
        for cell in self._acc:
            run, before = self._acc[cell], self._high[cell]
            total = before + run
            # What the addition rounds off is a float itself (Knuth's two-sum).
            taken = total - before
            lost = (before - (total - taken)) + (run - taken)
            self._high[cell], self._low[cell] = total, self._low[cell] + lost
        self._acc.fill(self._acc.k.const(0.0, self._acc.lanes))

    def finish(self) -> None:
        """Leave the totals in the accumulators."""
        for cell in self._acc:
            high, low = self._high[cell], self._low[cell]
            # Of infinite totals nothing is rounded off, though the formula says NaN.
            self._acc[cell] = high.k.blend(compare("uno", low, low), high, high + low)


def add_products(
    k: Kernel, acc: Tile, rows: Buffer, columns: Buffer, depth: int, unroll: int
) -> None:
    """acc[i, j] += the sum of rows[i, f] * columns[f, j] over `depth` terms f.

    `unroll` terms are straight code. A column is a vector.
    """
    totals = Totals(acc) if depth > LONG else None
    for run in cut(depth, PRODUCTS if totals else depth):
        with run.loop(k) as start:
            for steps in cut(run.size, unroll):
                with steps.unrolled(k) as terms:
                    for term in terms:
                        f = start + term
                        outer_product(
                            acc,
                            (rows.splat(i, f, lanes=acc.lanes) for i in range(acc.rows)),
                            (columns.load(f, j, lanes=acc.lanes) for j in range(acc.cols)),
                        )
            if totals:
                totals.take_in()
    if totals:
        totals.finish()
