"""What is to be computed: one convolution, with a text form that serves as its name everywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastrun.kernels.core.notebook import card
from fastrun.kernels.core.types import TYPES, Types

ACTIVATIONS = (
    "relu", "relu6", "hardswish", "sigmoid", "hardsigmoid", "silu", "gelu", "gelu_tanh", "tanh",
    "leaky0.1",
)  # fmt: skip
"""Activations; `gelu_tanh` approximates GELU by tanh. `leaky0.1` is max(x, 0.1 x), and any other
slope below 1 is allowed.
"""

_ACTIVATION = f"{'|'.join(ACTIVATIONS[:-1])}|leaky0[.][0-9]{{1,8}}"

GRAMMAR = (
    "conv NxCxHxW OCxKHxKW [s<stride>] [p<padding>] [d<dilation>] [g<groups>] [bias] [add] "
    f"[{'|'.join(ACTIVATIONS)}] [{TYPES}]"
)

PRODUCT_GRAMMAR = f"matmul [NxMxK or MxK] KxN [bias] [add] [{'|'.join(ACTIVATIONS)}] [{TYPES}]"
"""The text of a product with a constant matrix, which is read as a 1x1 convolution."""


def slope(activation: str) -> float | None:
    """The factor of negative values in a leaky activation; None for any other activation."""
    return float(activation.removeprefix("leaky")) if activation.startswith("leaky") else None


class ProblemError(ValueError):
    """A problem that cannot exist, or text that does not describe one. The message is one line."""


@dataclass(frozen=True)
class ConvProblem:
    """A 2-D convolution of `n` images of `c` x `h` x `w` by `oc` filters, and what follows it.

    The result is `activation(conv(x) + bias + add)`, where `add` is a tensor of the output's
    shape. Padding is (top, left, bottom, right) in pixels; pairs are (vertical, horizontal).

    The text form round-trips: `conv 1x64x56x56 64x3x3 s1 p1 bias relu`. Unequal pairs are written
    `s2x1`, `d1x2`, `p1x0` (vertical x horizontal) or `p0,0,1,1` (all four sides). `types` are the
    element types as in `Types`, "" for float32: `conv 1x64x56x56 64x3x3 s1 p1 bias relu u8s8>u8`.

    Raises:
        ProblemError: a size is not positive, groups do not divide the channels, the filter is
            larger than the padded image, sums of integers can exceed int32, or there is padding
            or there are groups of one bit.
    """

    n: int
    c: int
    h: int
    w: int
    oc: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = False
    add: bool = False
    activation: str = ""
    types: str = ""

    def __post_init__(self) -> None:
        counts = (self.n, self.c, self.h, self.w, self.oc, self.groups)
        if min(*counts, *self.kernel, *self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise ProblemError("impossible convolution: sizes are at least 1, padding at least 0")
        if self.c % self.groups or self.oc % self.groups:
            raise ProblemError(
                f"impossible convolution: {self.groups} groups do not divide "
                f"{self.c} input and {self.oc} output channels"
            )
        if not re.fullmatch(f"|{_ACTIVATION}", self.activation):
            raise ProblemError(f"unknown activation {self.activation!r}: use one of {ACTIVATIONS}")
        try:
            canonical = str(Types.parse(self.types))
        except ValueError as error:
            raise ProblemError(str(error)) from None
        object.__setattr__(self, "types", canonical)
        if self.precision.signs and (any(self.padding) or self.groups > 1):
            raise ProblemError(
                "types b1 have no padding and no groups: a padded zero has no sign, so pad the "
                "input with ones before"
            )
        if self.precision.integer and self.depth * 255 * self.precision.bound >= 1 << 31:
            raise ProblemError(f"sums of {self.depth} products of {canonical} can exceed int32")
        if self.oh < 1 or self.ow < 1:
            raise ProblemError(
                f"impossible convolution: a {self.kernel[0]}x{self.kernel[1]} filter "
                f"(dilation {self.dilation[0]}x{self.dilation[1]}) does not fit into "
                f"{self.h}x{self.w} with padding {','.join(map(str, self.padding))}"
            )

    @property
    def precision(self) -> Types:
        """The element types of the operands."""
        return Types.parse(self.types)

    @property
    def oh(self) -> int:
        """Output height."""
        top, _, bottom, _ = self.padding
        return (self.h + top + bottom - self._span(0)) // self.stride[0] + 1

    @property
    def ow(self) -> int:
        """Output width."""
        _, left, _, right = self.padding
        return (self.w + left + right - self._span(1)) // self.stride[1] + 1

    @property
    def group_c(self) -> int:
        """Input channels per group."""
        return self.c // self.groups

    @property
    def group_oc(self) -> int:
        """Output channels per group."""
        return self.oc // self.groups

    @property
    def depth(self) -> int:
        """Multiplications per output value: the K of the matrix product."""
        return self.group_c * self.kernel[0] * self.kernel[1]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of the input, the weights and the output."""
        return self.n * self.c * self.h * self.w, self.oc * self.depth, math.prod(self.output_shape)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(n, oc, oh, ow)."""
        return self.n, self.oc, self.oh, self.ow

    @property
    def macs(self) -> int:
        """Multiply-adds of the direct method, padding included."""
        return self.n * self.oc * self.oh * self.ow * self.depth

    @property
    def flops(self) -> int:
        """Two per multiply-add, whatever the algorithm: the field's convention."""
        return 2 * self.macs

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(oc, c / groups, kh, kw), the order ONNX stores."""
        return (self.oc, self.group_c, *self.kernel)

    def _span(self, axis: int) -> int:
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1

    def _repr_html_(self) -> str:
        kh, kw = self.kernel
        sizes = dict(zip(("input", "filters", "output"), self.sizes, strict=True))
        shapes = {
            "input": f"{self.n} x {self.c} channels of {self.h}x{self.w}",
            "filters": f"{self.oc} of {self.group_c}x{kh}x{kw}",
            "output": f"{self.n} x {self.oc} channels of {self.oh}x{self.ow}",
        }
        kinds = self.precision
        types = {"input": kinds.src, "filters": kinds.weights, "output": kinds.dst}
        taken = {k: types[k].bytes(count) for k, count in sizes.items()}
        facts = {k: f"{text}, {taken[k] / 1024:.0f} KiB" for k, text in shapes.items()}
        intensity = self.flops / sum(taken.values())
        work = f"{self.flops / 1e6:.1f} MFLOP, {intensity:.1f} FLOP per byte"
        return card(str(self), {**facts, "work": work})

    def __str__(self) -> str:
        words = [
            "conv",
            f"{self.n}x{self.c}x{self.h}x{self.w}",
            f"{self.oc}x{self.kernel[0]}x{self.kernel[1]}",
            "s" + _pair_text(self.stride),
            "p" + _padding_text(self.padding),
        ]
        if self.dilation != (1, 1):
            words.append("d" + _pair_text(self.dilation))
        if self.groups != 1:
            words.append(f"g{self.groups}")
        words += [w for w, present in (("bias", self.bias), ("add", self.add)) if present]
        return " ".join([*words, *filter(None, (self.activation, self.types))])

    @classmethod
    def parse(cls, text: str) -> ConvProblem:
        """Read the text form, or that of a product with a constant matrix.

        `matmul 1x196x768 768x3072 bias gelu` multiplies 196 rows of 768 by a matrix of 768x3072:
        the rows are the pixels of a 1x1 convolution, `conv 1x768x1x196 3072x1x1 s1 p0 bias gelu`.

        Raises:
            ProblemError: naming the first token that is wrong and what was expected there.
        """
        words = text.split()
        if words[:1] == ["matmul"]:
            return cls._product(words[1:], text)
        if len(words) < 3 or words[0] != "conv":
            raise ProblemError(f"not a problem: {text!r}; expected {GRAMMAR}")
        n, c, h, w = _numbers(words[1], 4, "NxCxHxW", text)
        oc, kh, kw = _numbers(words[2], 3, "OCxKHxKW", text)
        found = _options(words[3:], text, GRAMMAR.partition("OCxKHxKW ")[2])
        return cls(n, c, h, w, oc, (kh, kw), **found)  # type: ignore[arg-type]

    @classmethod
    def _product(cls, words: Sequence[str], text: str) -> ConvProblem:
        if len(words) < 2:
            raise ProblemError(f"not a problem: {text!r}; expected {PRODUCT_GRAMMAR}")
        several = words[0].count("x") == 2
        form = "NxMxK" if several else "MxK"
        *images, rows, depth = _numbers(words[0], 2 + several, form, text)
        inner, columns = _numbers(words[1], 2, "KxN", text)
        if inner != depth:
            raise _bad_token(words[1], f"a matrix of {depth} rows", text)
        found = _options(words[2:], text, PRODUCT_GRAMMAR.partition("KxN ")[2])
        if other := {"stride", "padding", "dilation", "groups"} & found.keys():
            raise ProblemError(f"problem text {text!r}: a product has no {min(other)}")
        n = images[0] if images else 1
        return cls(n, depth, 1, rows, columns, (1, 1), **found)  # type: ignore[arg-type]


def _pair_text(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _padding_text(padding: tuple[int, int, int, int]) -> str:
    top, left, bottom, right = padding
    if (top, left) == (bottom, right):
        return _pair_text((top, left))
    return ",".join(map(str, padding))


def _bad_token(word: str, expected: str, text: str) -> ProblemError:
    return ProblemError(f"problem text {text!r}: at {word!r} expected {expected}")


def _numbers(word: str, count: int, form: str, text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})" + f"{{{count - 1}}}", word):
        raise _bad_token(word, form, text)
    return [int(x) for x in word.split("x")]


def _pair(digits: str) -> tuple[int, int]:
    first, _, second = digits.partition("x")
    return int(first), int(second or first)


def _padding(digits: str) -> tuple[int, int, int, int]:
    if "," in digits:
        top, left, bottom, right = map(int, digits.split(","))
        return top, left, bottom, right
    vertical, horizontal = _pair(digits)
    return vertical, horizontal, vertical, horizontal


_PAIR = r"[0-9]{1,6}(?:x[0-9]{1,6})?"
_OPTIONS: list[tuple[str, str, Callable[[str], object]]] = [
    (f"s({_PAIR})", "stride", _pair),
    (f"d({_PAIR})", "dilation", _pair),
    (rf"p({_PAIR}|[0-9]{{1,6}}(?:,[0-9]{{1,6}}){{3}})", "padding", _padding),
    (r"g([0-9]{1,9})", "groups", int),
    ("(bias)", "bias", bool),
    ("(add)", "add", bool),
    (f"({_ACTIVATION})", "activation", str),
    (r"(u8s\S+|f32b?f16|f32s16|bf16\S*|b1)", "types", str),
]


def _options(words: Sequence[str], text: str, expected: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for word in words:
        name, value = _option(word, text, expected)
        if name in found:
            raise _bad_token(word, f"{name} to be given once", text)
        found[name] = value
    return found


def _option(word: str, text: str, expected: str) -> tuple[str, object]:
    for pattern, name, read in _OPTIONS:
        if match := re.fullmatch(pattern, word):
            return name, read(match[1])
    raise _bad_token(word, expected, text)
