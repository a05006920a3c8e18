"""Elementary functions on vectors, within a few units in the last place of float32.

NaN, infinities and zeros come out as IEEE 754 and numpy have them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Vec, constant, fma
from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.estimates import known, quotient, scaled
from fastrun.kernels.codegen.values import Vectors

# ln 2 in two parts, so that multiples of it up to 2^8 are exact in the first.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4

# Adding this to a small number rounds it to a whole number, which is then in the lowest bits.
_MAGIC, _MAGIC_BITS = 1.5 * 2**23, 0x4B400000

_LEAST_NORMAL = -87.33654  # e to this is just above 2^-126

_EXPM1 = tuple(1 / math.factorial(i) for i in range(1, 8))
_LOG = tuple(2 / i for i in range(1, 11, 2))
_ERF = tuple(
    2 / math.sqrt(math.pi) * (-1) ** i / (math.factorial(i) * (2 * i + 1)) for i in range(12)
)

# exp(y^2 / 2) erfc(y / sqrt 2) / t as a polynomial in t = 1 / (1 + 0.35 y), by least squares of
# the relative error on 0 <= y <= 14.5: within 4e-8.
_TAIL_SLOPE = 0.35
_TAIL = (0.2792394792, 0.2797868997, 0.2391723555, 0.2130958181, -0.05141720898,
         0.3262709849, -0.5186559416, 0.2915668888, -0.05905931253)  # fmt: skip
_TAIL_END = 14.5  # erfc underflows there

# The eighth root of the normal distribution's mass below -y as a polynomial in y, by least squares
# of the relative error on 0 <= y <= 6: within 3e-8. The mass beyond is less than 1e-9.
_MASS = (0.9170040488, -0.09145888686, -0.03191878647, -6.965717184e-4, 1.538532786e-3,
         6.601395853e-6, -4.645559602e-5, 3.186490176e-6, 5.219168884e-7, -8.955989728e-8,
         4.860951641e-9, -8.734840629e-11)  # fmt: skip
_MASS_END = 6.0


def polynomial(x: Vec, coefficients: Sequence[float]) -> Vec:
    """c0 + c1 x + c2 x^2 + ..."""
    value = _const(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = fma(value, x, _const(x, c))
    return value


def absolute(x: Vec) -> Vec:
    """|x|."""
    return x.k.intrinsic("fabs", x)


def copy_sign(x: Vec, sign: Vec) -> Vec:
    """|x| with the sign bit of `sign`."""
    return x.k.intrinsic("copysign", x, sign)


def maximum(a: Vec, b: Vec) -> Vec:
    """The larger; NaN if either is."""
    return a.k.blend(compare("uno", b, b), b, a.max(b))


def minimum(a: Vec, b: Vec) -> Vec:
    """The smaller; NaN if either is."""
    return a.k.blend(compare("uno", b, b), b, a.min(b))


def compare(predicate: str, a: Vec, b: Vec | float) -> str:
    """A mask of the lanes where LLVM's float `predicate` holds."""
    other = b.ssa if isinstance(b, Vec) else constant(b, a.lanes)
    return a.k.emit(f"fcmp {predicate} {a.type} {a.ssa}, {other}")


def combine(instruction: str, like: Vec, a: str, b: str) -> str:
    """Two masks of vectors like this one, by `and` or `or`."""
    return like.k.emit(f"{instruction} {vector_type(like.lanes, 'i1')} {a}, {b}")


def exp(x: Vec) -> Vec:
    """e^x."""
    p, n, whole = _reduced_exp(x.max(-104.0).min(89.0))
    if known(x):
        return scaled(p + 1.0, n)
    # In two steps, since 2^n may leave the range of floats where e^x does not.
    half = whole >> 1
    power = half.power_of_two
    return fma(p, power, power) * (whole - half).power_of_two


def weight(x: Vec) -> Vec:
    """e^x as a weight of a sum whose largest is 1: 0 where it would be no normal number.

    Intel's cores take a hundred cycles and more for each product of subnormal numbers, as masks of
    -100 make them.
    """
    value = exp(x.max(_LEAST_NORMAL))
    return x.k.blend(compare("olt", x, _LEAST_NORMAL), _const(x, 0.0), value)


def expm1_negative(x: Vec) -> Vec:
    """e^x - 1 where x <= 0; 0 where it is positive."""
    p, n, whole = _reduced_exp(x.min(0.0).max(-30.0))
    power = scaled(_const(x, 1.0), n) if known(x) else whole.power_of_two
    return fma(p, power, power - 1.0)


def log(x: Vec) -> Vec:
    """The natural logarithm."""
    k = x.k
    tiny = compare("olt", x, 2.0**-126)
    scaled = k.blend(tiny, x * 2.0**23, x)
    bits = _Bits.of(scaled)
    # The exponent that leaves a mantissa between sqrt(1/2), whose bits these are, and sqrt(2).
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).floats - 1.0
    number = k.blend(tiny, exponent.value - 23.0, exponent.value)
    value = fma(number, _const(x, _LN2_HIGH), fma(number, _const(x, _LN2_LOW), _log1p(f)))
    value = k.blend(compare("oeq", x, math.inf), x, value)
    value = k.blend(compare("ult", x, 0.0), _const(x, math.nan), value)
    return k.blend(compare("oeq", x, 0.0), _const(x, -math.inf), value)


def log1p(x: Vec) -> Vec:
    """log(1 + x) where 0 <= x is finite."""
    w = x + 1.0
    # The second term is what rounding 1 + x lost, to first order.
    return log(w) + (x - (w - 1.0)) / w


def tanh(x: Vec) -> Vec:
    """The hyperbolic tangent."""
    t = expm1_negative(absolute(x) * -2.0)
    return copy_sign(quotient(t, t + 2.0), x)


def sigmoid(x: Vec) -> Vec:
    """1 / (1 + e^-x)."""
    return quotient(1.0, exp(x * -1.0) + 1.0)


def softplus(x: Vec) -> Vec:
    """log(1 + e^x)."""
    return x.max(0.0) + log1p(exp(absolute(x) * -1.0))


def erf(x: Vec) -> Vec:
    """The error function."""
    near = x * polynomial(x * x, _ERF)
    far = _const(x, 1.0) - normal_tail(absolute(x) * math.sqrt(2))
    return x.k.blend(compare("olt", absolute(x), 1.0), near, copy_sign(far, x))


def gelu(x: Vec) -> Vec:
    """x times the normal distribution's mass below x, within 3e-7 or 8 units in the last place.

    That is the error of the usual formula with an error function, at a quarter of the time.
    """
    # x * mass(x) = max(x, 0) - y * mass(-y) with y = |x|, where mass(-y) is an eighth power.
    y = absolute(x).min(_MASS_END)
    root = polynomial(y, _MASS)
    square = root * root
    fourth = square * square
    return fma(y * -1.0, fourth * fourth, x.max(0.0))


def gelu_tanh(x: Vec) -> Vec:
    """The approximation of `gelu` by tanh: x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    # 1 + tanh(u) = 2 sigmoid(2 u), which is precise also where tanh is near -1.
    cubic = x * fma(x * x, _const(x, 0.044715), _const(x, 1.0))
    return x * sigmoid(cubic * (2 * math.sqrt(2 / math.pi)))


def normal_tail(y: Vec) -> Vec:
    """erfc(y / sqrt 2): the normal distribution's mass beyond y on both sides, for y >= 0."""
    y = y.min(_TAIL_END)
    t = quotient(1.0, fma(y, _const(y, _TAIL_SLOPE), _const(y, 1.0)))
    half = y * 0.5
    square = half * y
    # The rounding error of the square would be magnified by the exponential.
    lost = fma(half, y, square * -1.0)
    envelope = exp(square * -1.0)
    return fma(envelope, lost * -1.0, envelope) * (t * polynomial(t, _TAIL))


def _reduced_exp(x: Vec) -> tuple[Vec, Vec, _Bits]:
    """e^r - 1, and the whole number n of x = n ln 2 + r, as a float and as an integer."""
    shifted = fma(x, _const(x, 1 / math.log(2)), _const(x, _MAGIC))
    n = shifted - _MAGIC
    r = fma(n, _const(x, -_LN2_HIGH), x)
    r = fma(n, _const(x, -_LN2_LOW), r)
    return r * polynomial(r, _EXPM1), n, _Bits.of(shifted) - _MAGIC_BITS


def _log1p(f: Vec) -> Vec:
    """log(1 + f) between sqrt(1/2) and sqrt(2), by the series in f / (2 + f)."""
    s = f / (f + 2.0)
    z = s * s
    # 2 s = f - s f, so that the first term is exact.
    series = z * polynomial(z, _LOG[1:])
    return f + s * (series - f)


def _const(like: Vec, value: float) -> Vec:
    return like.k.const(value, like.lanes)


@dataclass(frozen=True)
class _Bits:
    """The lanes of a vector as 32-bit integers."""

    k: Vectors
    ssa: str
    lanes: int

    @classmethod
    def of(cls, x: Vec) -> _Bits:
        kind = vector_type(x.lanes, "i32")
        return cls(x.k, x.k.emit(f"bitcast {x.type} {x.ssa} to {kind}"), x.lanes)

    def __add__(self, other: _Bits | int) -> _Bits:
        return self._apply("add", other)

    def __sub__(self, other: _Bits | int) -> _Bits:
        return self._apply("sub", other)

    def __lshift__(self, other: int) -> _Bits:
        return self._apply("shl", other)

    def __rshift__(self, other: int) -> _Bits:
        return self._apply("ashr", other)

    @property
    def floats(self) -> Vec:
        """The floats that have these bits."""
        return self._to("bitcast")

    @property
    def value(self) -> Vec:
        """The integers as floats."""
        return self._to("sitofp")

    @property
    def power_of_two(self) -> Vec:
        """2^n of whole numbers from -126 to 127."""
        return ((self + 127) << 23).floats

    def _to(self, conversion: str) -> Vec:
        like = Vec(self.k, "", self.lanes)
        text = f"{conversion} {vector_type(self.lanes, 'i32')} {self.ssa} to {like.type}"
        return Vec(self.k, self.k.emit(text), self.lanes)

    def _apply(self, instruction: str, other: _Bits | int) -> _Bits:
        operand = other.ssa if isinstance(other, _Bits) else _repeated(other, self.lanes)
        text = f"{instruction} {vector_type(self.lanes, 'i32')} {self.ssa}, {operand}"
        return _Bits(self.k, self.k.emit(text), self.lanes)


def _repeated(value: int, lanes: int) -> str:
    return str(value) if lanes == 1 else "<" + ", ".join([f"i32 {value}"] * lanes) + ">"
