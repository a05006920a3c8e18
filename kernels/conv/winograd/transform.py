"""Winograd's minimal filtering F(m, r): exact matrices, applied with few instructions.

One axis computes m outputs of an r-tap correlation from alpha = m + r - 1 inputs with alpha
multiplications, `y = At [(G g) * (Bt d)]`; two axes nest (Lavin and Gray, 2016).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Vec
from fastrun.kernels.codegen.dot import multiply_add
from fastrun.kernels.core.forks import matmul
from fastrun.kernels.core.layout import Array
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import ROUNDING

# Multiplications up to which numpy's matrix product stays on this thread. In larger ones, threads
# wait for each other longer than they work.
_ALONE = 2**18

Row = tuple[Fraction, ...]
Matrix = tuple[Row, ...]

# Where the polynomials are evaluated, besides infinity: whole numbers and their inverses
# (standard), or the magnitudes that amplify rounding errors least (balanced). Points come as a and
# -a, which share half their work. For three and seven points the standard ones are the best.
_STANDARD = (*map(Fraction, (0, 1, -1, 2, -2)), Fraction(1, 2), Fraction(-1, 2))
_MAGNITUDES = {
    4: ("0.38", "1.28"),
    5: ("0", "0.65", "1.53"),
    6: ("0.28", "0.85", "1.77"),
    8: ("0.23", "0.67", "1.13", "2.18"),
}
_BALANCED = {
    count: tuple(dict.fromkeys(s * Fraction(m) for m in magnitudes for s in (1, -1)))
    for count, magnitudes in _MAGNITUDES.items()
}
POINTS = ("standard", "balanced")

# The most inputs on an axis of a tile: there are no points for more.
ALPHA = 9


def tile_sizes(r: int, extent: int) -> list[int]:
    """Outputs of a tile worth trying on an axis of `extent` outputs and r taps; 1: no transform.

    A size is left out if a smaller size needs as few tiles.
    """
    largest = ALPHA + 1 - r if r > 1 else 1
    return [1, *(m for m in range(2, largest + 1) if m == -(-extent // -(-extent // m)))]


def shared_outputs(p: ConvProblem) -> tuple[int, int]:
    """Outputs on each axis whose taps overlap: with dilation d, one in d."""
    return -(-p.oh // p.dilation[0]), -(-p.ow // p.dilation[1])


def tile_grid(p: ConvProblem, m: tuple[int, int]) -> tuple[int, int]:
    """Tiles down and across an image, of m[0] x m[1] outputs that lie a dilation apart."""
    down, across = (-(-n // size) for n, size in zip(shared_outputs(p), m, strict=True))
    return down * p.dilation[0], across * p.dilation[1]


def finite_points(count: int, points: str) -> Row:
    """The points of a set, `standard` or `balanced`; these differ only where balanced is better.

    Raises:
        ValueError: there is no such set, or none with so many points.
    """
    if points not in POINTS:
        raise ValueError(f"no points {points!r}: use one of {', '.join(POINTS)}")
    if points == "balanced" and count in _BALANCED:
        return _BALANCED[count]
    if count > len(_STANDARD):
        raise ValueError(f"no {points} points for {count + 1} inputs on an axis of a tile")
    return _STANDARD[:count]


def sets_of_points(count: int) -> list[str]:
    """Names of the sets of so many points, one name for each set."""
    standard = ["standard"] if count <= len(_STANDARD) else []
    return [*standard, *(["balanced"] if count in _BALANCED else [])]


@dataclass(frozen=True)
class Transform:
    """F(m, r) on one axis: `at` is m x alpha, `g` alpha x r, `bt` alpha x alpha, all exact.

    For m = 1 or r = 1 nothing is transformed.
    """

    at: Matrix
    g: Matrix
    bt: Matrix

    @classmethod
    @functools.cache
    def of(cls, m: int, r: int, points: str) -> Transform:
        """By Toom and Cook: filter and output matrices are powers of the points.

        Raises:
            ValueError: there are no such points, or fewer than alpha needs.
        """
        alpha = m + r - 1
        if m == 1 or r == 1:
            ones = (Fraction(1),) * alpha
            single, identity = tuple((one,) for one in ones), _identity(alpha)
            return cls(identity, single, identity) if r == 1 else cls((ones,), identity, identity)
        finite = finite_points(alpha - 1, points)
        # Row i of Bt holds the coefficients of the polynomial that is 0 at all points but the
        # i-th. Its value there, f, is divided out of the filter.
        bt, g = [], []
        for i, a in enumerate(finite):
            others = finite[:i] + finite[i + 1 :]
            bt.append((*_polynomial(others), Fraction(0)))
            f = math.prod((a - b for b in others), start=Fraction(1))
            g.append(tuple(a**j / f for j in range(r)))
        bt.append(_polynomial(finite))
        g.append(_unit(r - 1, r))
        columns = [tuple(a**k for k in range(m)) for a in finite] + [_unit(m - 1, m)]
        return cls(tuple(zip(*columns, strict=True)), tuple(g), tuple(bt))

    @property
    def m(self) -> int:
        """Outputs of a tile."""
        return len(self.at)

    @property
    def alpha(self) -> int:
        """Inputs of a tile, and products."""
        return len(self.bt)

    @functools.cached_property
    def whole(self) -> bool:
        """Whether `of_input` multiplies by whole numbers only, so that integers stay exact."""
        odd = [self._pair(i, j)[1] for i, j in self._mirrored_inputs]
        factors = [x for row in self.bt for x in row]
        factors += [x / next(y for y in reversed(row) if y) for row in odd for x in row]
        return all(x.denominator == 1 for x in factors)

    @functools.cached_property
    def reach(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the positive coefficients of each row of Bt add up to, and the negative ones."""
        rows = [[max(x, Fraction(0)) for x in row] for row in self.bt]
        others = [[max(-x, Fraction(0)) for x in row] for row in self.bt]
        up, down = (np.array([float(sum(row)) for row in part]) for part in (rows, others))
        return up, down

    @functools.cached_property
    def denominators(self) -> NDArray[np.float64]:
        """Numbers that make the rows of G whole."""
        return np.array([float(math.lcm(*(x.denominator for x in row))) for row in self.g])

    @functools.cached_property
    def amplification(self) -> float:
        """The rms of the summed values relative to the rms of their sums: at least 1.

        It is for inputs and weights of independent normal numbers. Rounding errors grow by this
        factor.
        """
        at, g, bt = (np.array(x, np.float64) for x in (self.at, self.g, self.bt))
        products = np.square(g).sum(1) * np.square(bt).sum(1)
        return math.sqrt(matmul(np.square(at), products).mean() / g.shape[1])

    def of_input(self, d: Sequence[Vec]) -> list[Vec]:
        """Bt d: alpha values from alpha values."""
        rows: dict[int, Vec] = {}
        for i, j in self._mirrored_inputs:
            both, odd = self._pair(i, j)
            even = _combine(both, d)
            lead = next(x for x in reversed(odd) if x)
            rest = _combine([x / lead for x in odd], d)
            rows[i], rows[j] = _add(even, lead, rest), _add(even, -lead, rest)
        return [rows[i] if i in rows else _combine(row, d) for i, row in enumerate(self.bt)]

    def of_output(self, products: Sequence[Vec]) -> list[Vec]:
        """At products: m values from alpha values."""
        pairs = self._mirrored_outputs
        sums = {i: products[i] + products[j] for i, j in pairs}
        differences = {i: products[i] - products[j] for i, j in pairs}
        second = {j for _, j in pairs}
        outputs = []
        for row in self.at:
            values = list(products)
            for i, j in pairs:
                values[i] = sums[i] if row[i] == row[j] else differences[i]
            once = [Fraction(0) if j in second else x for j, x in enumerate(row)]
            outputs.append(_combine(once, values))
        return outputs

    def _pair(self, i: int, j: int) -> tuple[Row, Row]:
        """What two mirrored rows of `bt` have in common, and what only the first has."""
        pairs = list(zip(self.bt[i], self.bt[j], strict=True))
        even = tuple(x if x == y else Fraction(0) for x, y in pairs)
        return even, tuple(x if x != y else Fraction(0) for x, y in pairs)

    @functools.cached_property
    def _mirrored_inputs(self) -> list[tuple[int, int]]:
        return _mirrored(self.bt)

    @functools.cached_property
    def _mirrored_outputs(self) -> list[tuple[int, int]]:
        return _mirrored(tuple(zip(*self.at, strict=True)))


def expected_error(p: ConvProblem, m: tuple[int, int], points: str = "balanced") -> float:
    """The rms error on normal data, relative to the output's rms.

    Sums round at every step, so their errors grow with the square root of their length. The factor
    1/3 was measured for m = 2..7 and 16 to 512 channels. Rounding transformed weights to 16 bits
    adds to it.
    """
    axes = (Transform.of(size, r, points) for size, r in zip(m, p.kernel, strict=True))
    eps = float(np.finfo(np.float32).eps) / 2
    single = math.hypot(eps * math.sqrt(p.group_c) / 3, ROUNDING.get(p.precision.weights, 0.0))
    return single * math.prod(t.amplification for t in axes)


def transform_weights(weights: Array, vertical: Transform, horizontal: Transform) -> Array:
    """G g Gt of weights (oc, c, kh, kw) in float64, rounded once: (alpha_h, alpha_w, oc, c)."""
    gh, gw = (np.array(t.g, np.float64) for t in (vertical, horizontal))
    both = np.kron(gh, gw)
    taps = weights.reshape(-1, both.shape[1])
    u = np.empty((len(both), len(taps)), np.float32)
    step = max(1, _ALONE // both.size)
    for first in range(0, len(taps), step):
        u[:, first : first + step] = matmul(both, taps[first : first + step].T.astype(np.float64))
    return u.reshape(vertical.alpha, horizontal.alpha, *weights.shape[:2])


def _combine(coefficients: Sequence[Fraction], values: Sequence[Vec]) -> Vec:
    """The sum of coefficients * values; it begins with a coefficient of 1 if there is one."""
    terms = [(c, v) for c, v in zip(coefficients, values, strict=True) if c]
    terms.sort(key=lambda term: term[0] != 1)
    (first, value), *others = terms
    total = value if first == 1 else value * float(first)
    for c, v in others:
        total = _add(total, c, v)
    return total


def _add(total: Vec, c: Fraction, v: Vec) -> Vec:
    """total + c * v."""
    if c == 1:
        return total + v
    if c == -1:
        return total - v
    return multiply_add(total, v, v.k.const(float(c), v.lanes, v.dtype))


def _mirrored(rows: Matrix) -> list[tuple[int, int]]:
    """Pairs of rows that differ only in the sign of some elements: those of points a and -a."""
    return [
        (i, j)
        for i, j in combinations(range(len(rows)), 2)
        if rows[i] != rows[j] and [abs(x) for x in rows[i]] == [abs(x) for x in rows[j]]
    ]


def _polynomial(roots: Sequence[Fraction]) -> Row:
    """Coefficients of prod (x - root), lowest power first."""
    c = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *c]
        c = [high - root * low for high, low in zip(shifted, [*c, Fraction(0)], strict=True)]
    return tuple(c)


def _unit(i: int, size: int) -> Row:
    return tuple(Fraction(int(i == j)) for j in range(size))


def _identity(size: int) -> Matrix:
    return tuple(_unit(i, size) for i in range(size))
