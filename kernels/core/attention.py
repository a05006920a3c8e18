"""What is to be computed: one attention, with a text form that serves as its name everywhere."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

from fastrun.kernels.core.notebook import card
from fastrun.kernels.core.problem import ConvProblem, ProblemError
from fastrun.kernels.core.types import Types

ATTENTION_GRAMMAR = "attention NxHEADSxQUERIESxSIZE KEYSxVALUES [mask]"


@dataclass(frozen=True)
class AttentionProblem:
    """`softmax(q @ k^T / sqrt(size) + mask) @ v` for each of `heads` heads of `n` images.

    A query and a key are `size` numbers, a value is `values` numbers. The mask has a number for
    every head, query and key, which all images share.

    The text form round-trips: `attention 1x12x197x64 197x64` is a layer of a vision transformer.
    With as many keys as queries all three come from one tensor, else keys and values from another.

    Raises:
        ProblemError: a size is not positive.
    """

    n: int
    heads: int
    queries: int
    size: int
    keys: int
    values: int
    mask: bool = False

    # As of convolutions: float32 only, and nothing is added or applied to the result.
    types: ClassVar[str] = ""
    bias: ClassVar[bool] = False
    activation: ClassVar[str] = ""

    def __post_init__(self) -> None:
        sizes = (self.n, self.heads, self.queries, self.size, self.keys, self.values)
        if min(sizes) < 1:
            raise ProblemError("impossible attention: sizes are at least 1")

    @property
    def precision(self) -> Types:
        """The element types of the operands."""
        return Types()

    @property
    def add(self) -> bool:
        """Whether keys and values come from a second tensor."""
        return self.keys != self.queries

    @property
    def channels(self) -> int:
        """Channels of the first tensor: queries, and keys and values if there is no second."""
        return self.heads * self.size + (0 if self.add else self.channels_beside)

    @property
    def channels_beside(self) -> int:
        """Channels of keys and values."""
        return self.heads * (self.size + self.values)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """(1, heads, queries, keys), or () without a mask."""
        return (1, self.heads, self.queries, self.keys) if self.mask else ()

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of the inputs, the mask and the output."""
        beside = self.n * self.channels_beside * self.keys if self.add else 0
        inputs = self.n * self.channels * self.queries + beside
        mask = math.prod(self.mask_shape) if self.mask else 0
        return inputs, mask, math.prod(self.output_shape)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(n, heads * values, 1, queries)."""
        return self.n, self.heads * self.values, 1, self.queries

    @property
    def macs(self) -> int:
        """Multiply-adds of both products."""
        return self.n * self.heads * self.queries * self.keys * (self.size + self.values)

    @property
    def flops(self) -> int:
        """Two per multiply-add; softmax does not count."""
        return 2 * self.macs

    def _repr_html_(self) -> str:
        facts = {
            "queries": f"{self.n} x {self.heads} heads of {self.queries} x {self.size}",
            "keys": f"{self.n} x {self.heads} heads of {self.keys} x {self.size}",
            "values": f"{self.n} x {self.heads} heads of {self.keys} x {self.values}",
            "work": f"{self.flops / 1e6:.1f} MFLOP",
        }
        return card(str(self), facts)

    def __str__(self) -> str:
        queries = f"{self.n}x{self.heads}x{self.queries}x{self.size}"
        return f"attention {queries} {self.keys}x{self.values}{' mask' * self.mask}"

    @classmethod
    def parse(cls, text: str) -> AttentionProblem:
        """Read the text form.

        Raises:
            ProblemError: the text is no attention, or a size is not positive.
        """
        number = "([0-9]{1,9})"
        form = rf"attention\s+{'x'.join([number] * 4)}\s+{number}x{number}(\s+mask)?"
        match = re.fullmatch(form, text.strip())
        if not match:
            raise ProblemError(f"not a problem: {text!r}; expected {ATTENTION_GRAMMAR}")
        n, heads, queries, size, keys, values = map(int, match.groups()[:-1])
        return cls(n, heads, queries, size, keys, values, bool(match[7]))


Problem = ConvProblem | AttentionProblem
"""What can be tuned."""


def parse_problem(text: str) -> Problem:
    """Read the text form of a problem of any kind.

    Raises:
        ProblemError: naming what is wrong and what was expected there.
    """
    if text.split()[:1] == ["attention"]:
        return AttentionProblem.parse(text)
    return ConvProblem.parse(text)
