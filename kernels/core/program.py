"""A built kernel as data: IR text, stages, operands, and how its weights are packed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.core.attention import AttentionProblem, Problem
from fastrun.kernels.core.cpu import whole_lines
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import READ_SLACK, Array, Placement, layout_pair
from fastrun.kernels.core.quantised import TRIAL_ZERO


@dataclass(frozen=True)
class Io:
    """Where a kernel finds its input and the residual `add`, and where it leaves its output.

    Input channels may be `gathered`. The kernel then reads channel i at `src` + table[i], in
    elements; the table lies in front of the weights (`pack_channels`). `src` gives only the base
    and the strides, so that channels may come from several tensors of these strides.
    """

    src: Placement
    dst: Placement
    add: Placement
    gathered: bool = False

    @classmethod
    def of(cls, p: Problem, layout: str) -> Io:
        """The usual placement: the input has the padding as its halo, the output has no halo.

        Queries, keys and values of attention are pixels in a row; keys and values are `add` if they
        come from another tensor.
        """
        src, dst = layout_pair(layout)
        types = p.precision
        if isinstance(p, AttentionProblem):
            rows = Placement(src, p.n, p.channels, 1, p.queries)
            out = Placement(dst, p.n, p.heads * p.values, 1, p.queries)
            beside = Placement(src, p.n, p.channels_beside, 1, p.keys)
            return cls(rows, out, beside if p.add else out)
        zero = TRIAL_ZERO if types.integer else 0
        out = Placement(dst.of(types.dst), p.n, p.oc, p.oh, p.ow)
        return cls(Placement(src.of(types.src), p.n, p.c, p.h, p.w, p.padding, zero=zero), out, out)

    @classmethod
    def named(cls, operands: Mapping[str, Placement], dst: Placement) -> Io:
        """Operands by the arguments "src" and "add" of a kernel; one that lacks counts as `dst`."""
        return cls(operands.get("src", dst), dst, operands.get("add", dst))


@dataclass(frozen=True)
class Stage:
    """A function that works on tasks [begin, end) of `tasks`. A barrier follows it."""

    symbol: str
    tasks: int


@dataclass(frozen=True)
class Program:
    """A built kernel: deterministic IR and everything needed to run it.

    The IR is written when it is first asked for. `key` names it without being written
    (`core.identity`), `digest` is its SHA-256, if that is known; else they are "".

    Every stage has the signature
    `void stage(src, weights, bias, add, dst, shared, local, i64 begin, i64 end)`.
    `shared` is one workspace for all threads, `local` one per thread; sizes in bytes.
    `pack_weights` turns (oc, c/groups, kh, kw) into the flat array the stages read: of float32, or
    of whatever type the packed weights have.
    """

    write: Callable[[], str]
    stages: tuple[Stage, ...]
    io: Io
    pack_weights: Callable[[NDArray[Any]], NDArray[Any]]
    shared_bytes: int = 0
    local_bytes: int = 0
    key: str = ""
    digest: str = ""

    @property
    def ir(self) -> str:
        """The text of all stages.

        Raises:
            ScheduleError: the schedule cannot be right, which shows only in its text.
        """
        return self.write()

    @property
    def ir_hash(self) -> str:
        """Identity of the generated code. Schedules with the same effect have the same hash."""
        return (self.digest or digest_of(self.ir))[:32]


def digest_of(ir: str) -> str:
    """SHA-256 of a kernel's text."""
    return hashlib.sha256(ir.encode()).hexdigest()


def pack_bias(bias: Array) -> Array:
    """The bias followed by zeros, so that kernels can load whole vectors at any channel.

    Bits stay as they are: those of float32 may stand for other numbers.
    """
    return np.concatenate([bias.astype(F32.numpy, copy=False), np.zeros(READ_SLACK, F32.numpy)])


def channel_table(c: int) -> int:
    """Floats that the table of `c` gathered channels takes: whole cache lines."""
    return whole_lines(c)


def pack_channels(offsets: Sequence[int]) -> Array:
    """The table of gathered channels (see `Io`): int32 numbers in the place of floats."""
    table = np.zeros(channel_table(len(offsets)), np.int32)
    table[: len(offsets)] = offsets
    return table.view(np.float32)
