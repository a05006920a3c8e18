"""The element types of a convolution as one word of its text: `u8s8>u8`, `f32f16`, `f32s16`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from fastrun.kernels.core.dtype import BF16, BY_NAME, F16, F32, I16, I32, S8, U8, DType

TYPES = "u8s8>u8|u8s8>f32|u8s7>u8|...|f32f16|f32bf16|f32s16|bf16|bf16>f32|b1"
"""The words in short, for messages."""

_WORDS = r"u8s[2-9](>(u8|f32))?|f32f16|f32bf16|f32s16|bf16(>(bf16|f32))?|b1"


@dataclass(frozen=True)
class Types:
    """Element types of input, weights, sums and output; a residual has the output's type.

    Integer weights have `bits` bits, as two's complement; of seven bits there is a 64, too. Input
    of type u8 means (stored - zero point) * scale; weights of type s8 are symmetric, with a scale
    for each output channel. Weights of nine bits are bytes less a zero point of their output
    channel, as int16: those of a channel differ by at most 255. With one bit tensors are float32
    and count by their signs. Of `f32s16` tensors are float32 too, and products those of int16: a
    kernel scales and rounds both operands.
    """

    src: DType = F32
    weights: DType = F32
    dst: DType = F32
    bits: int = 32

    @property
    def integer(self) -> bool:
        """Whether products and sums are integers."""
        return self.src is U8

    @property
    def signs(self) -> bool:
        """Whether float32 input and weights count by their signs alone."""
        return self.bits == 1

    @property
    def as_int16(self) -> bool:
        """Whether a kernel rounds float32 input and weights to int16."""
        return self.src is F32 and self.weights is I16

    @property
    def sums(self) -> DType:
        """The type of accumulators."""
        return F32 if self.src.is_float else I32

    @property
    def largest(self) -> int:
        """The largest integer weight; the least is -`bound`, of nine bits one more."""
        return self.bound if self.bits == 7 else self.bound - 1

    @property
    def bound(self) -> int:
        """The largest absolute value of an integer weight."""
        return 1 << (self.bits - 1)

    def __str__(self) -> str:
        if self.integer:
            return f"u8s{self.bits}>{self.dst.name}"
        if self.signs:
            return "b1"
        if self.src is I16:
            return "s16"
        if self.as_int16:
            return "f32s16"
        if self.src is BF16:
            return "bf16" if self.dst is BF16 else "bf16>f32"
        return "" if self.weights is F32 else f"f32{self.weights.name}"

    @classmethod
    def pairs(cls) -> Types:
        """Those of int16 products; problems do not have them, but steps of some algorithms."""
        return cls(I16, I16, I32, 16)

    @classmethod
    @functools.cache
    def parse(cls, word: str) -> Types:
        """Read the word; "" is f32. Without `>` the output's type is that of the input.

        Raises:
            ValueError: there are no such types.
        """
        if not re.fullmatch(f"|{_WORDS}", word):
            raise ValueError(f"unknown types {word!r}: use {TYPES}")
        if not word:
            return cls()
        if word == "b1":
            return cls(bits=1)
        inputs, _, output = word.partition(">")
        if inputs.startswith("u8s"):
            bits = int(inputs[3:])
            return cls(U8, S8 if bits <= S8.bits else I16, BY_NAME[output or "u8"], bits)
        if inputs == "bf16":
            return cls(BF16, BF16, BY_NAME[output or "bf16"], 16)
        return cls(F32, {"f32bf16": BF16, "f32s16": I16}.get(inputs, F16), F32, 16)
