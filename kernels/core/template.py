"""What an algorithm is: a record of functions that choose a schedule and build a kernel.

A file in `kernels/conv/` or `kernels/attention/` that ends in `template = KernelTemplate(...)` is
an algorithm. No other file needs to name it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F16, F32
from fastrun.kernels.core.identity import key_of
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.levels import Block
from fastrun.kernels.core.notebook import card
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.types import Types

# The largest number in a schedule.
LARGEST = 10**9


class ScheduleError(ValueError):
    """The schedule cannot be right for this problem and machine. The message is one line."""


def check(condition: bool, reason: str) -> None:
    """Raise `ScheduleError(reason)` unless `condition`."""
    if not condition:
        raise ScheduleError(reason)


def check_f32(operator: str, *tensors: Placement | Strided) -> None:
    """Raise `ScheduleError` unless all tensors are of float32."""
    for tensor in tensors:
        check(tensor.dtype is F32, f"{operator} works on f32, not on {tensor.dtype.name}")


def check_sizes(schedule: Any, *zero: str) -> None:
    """Raise `ScheduleError` unless all integers of `schedule` are from 1 to `LARGEST`.

    The fields named in `zero` may also be 0. A larger number could overflow in arithmetic.
    """
    for field in fields(schedule):
        size, least = getattr(schedule, field.name), int(field.name not in zero)
        if type(size) is int:  # a bool is an int, too
            check(least <= size <= LARGEST, f"{field.name}={size}: from {least} to {LARGEST}")


def check_layouts(io: Io, *layouts: str) -> None:
    """Raise `ScheduleError` unless input and output have one of these layouts."""
    for where in (io.src, io.dst):
        check(where.layout.name in layouts, f"no {where.layout}: use {', '.join(layouts)}")


def summation_error(p: ConvProblem, schedule: Any) -> float:
    """The rms error of sums of products on normal data, relative to the rms of the output.

    It grows with the square root of the number of products. The factor is the largest that was
    measured over all algorithms that sum in order. Rounding weights and outputs to 16 bits adds to
    it. Sums of integers are exact.
    """
    types = p.precision
    if types.integer:
        return 0.0
    # A product of pairs of bf16 rounds float32 input as well.
    src = types.weights if getattr(schedule, "dot", "") and types.src is F32 else F32
    rounded = [ROUNDING.get(t, 0.0) for t in (src, types.weights, types.dst)]
    return math.hypot(0.37 * 2**-24 * math.sqrt(p.depth), *rounded)


ROUNDING = {F16: 2**-10.5 / math.sqrt(12), BF16: 2**-7.5 / math.sqrt(12)}
"""The rms of the relative error of numbers rounded to a type with 11 or 8 bits of precision."""


@dataclass(frozen=True)
class KernelTemplate:
    """One algorithm. Plain functions in a frozen record; no subclassing.

    It computes problems of the class `problem`, which its functions get.
    `schedule` is a frozen dataclass with fields of type int, bool or str, one of them `layout`.
    `why_not` says in words why the algorithm does not apply, or returns None.
    `heuristic` answers without measuring. `generate` writes the kernel, and raises
    `ScheduleError` for a schedule that cannot be right; it is called through `build`.
    `rank` says how much a fixed preference favours the algorithm for a problem.
    `baseline` marks algorithms that exist to be compared with, `gathers` those that can read
    gathered channels (see `Io`). `takes` says which element types it can compute: by default
    float32 only. Without `rows_alike` the bits of an output row depend on which
    others are computed with it; `grain` is the number of rows best computed together. `error` is
    the rms error to expect on normal data, relative to the output's rms, or in steps of an output
    that is u8. `careful` is the heuristic of an algorithm that can trade speed for a smaller error:
    its schedule with an expected error of at most the given one, or the most exact one.
    `effort` is the time to expect as a share of the direct method's in float32, as far as it
    follows from operations and moved numbers. `expansion` is how many times as many numbers the
    packed weights are as the weights. `streaming` is a schedule as it is best where no cache keeps
    the weights from one run to the next. `levels` says which block of a schedule is sized for which
    level of memory; of algorithms without blocks there are none. `products` names the kind of dot
    product of a schedule, whose rate the machine's report has; "" is float32's.
    """

    name: str
    schedule: type[Any]
    why_not: Callable[[Any, Cpu], str | None]
    heuristic: Callable[[Any, Cpu], Any]
    generate: Callable[[Any, Any, Cpu, Io], Program]
    rank: Callable[[Any, Cpu], int] = lambda p, cpu: 1
    baseline: bool = False
    gathers: bool = False
    takes: Callable[[Types, Cpu], bool] = lambda types, cpu: types == Types()
    rows_alike: bool = True
    grain: Callable[[Any, Any], int] = lambda p, schedule: 1
    error: Callable[[Any, Any], float] = summation_error
    careful: Callable[[Any, Cpu, float], Any] | None = None
    effort: Callable[[Any, Any], float] = lambda p, schedule: 1.0
    expansion: Callable[[Any, Any], float] = lambda p, schedule: 1.0
    streaming: Callable[[Any, Any], Any] = lambda p, schedule: schedule
    levels: Callable[[Any, Any, Cpu], Sequence[Block]] = lambda p, schedule, cpu: ()
    problem: type[Problem] = ConvProblem
    products: Callable[[Types, Any], str] = lambda types, schedule: getattr(schedule, "dot", "")

    def __post_init__(self) -> None:
        # Notebooks show a schedule under its algorithm's name, which it does not know itself.
        def shown(schedule: Any) -> str:
            values = {f.name: word(getattr(schedule, f.name)) for f in fields(schedule)}
            return card(self.name, values)

        self.schedule._repr_html_ = shown

    def refusal(self, p: Problem, cpu: Cpu) -> str | None:
        """Why the algorithm does not apply, element types included; None if it does."""
        if not isinstance(p, self.problem):
            return f"it does not compute {str(p).partition(' ')[0]}"
        if not self.takes(p.precision, cpu):
            return f"it does not compute {p.types or 'f32'} on this processor"
        return self.why_not(p, cpu)

    def heuristic_within(self, p: Problem, cpu: Cpu, max_error: float | None) -> Any:
        """The heuristic's schedule with an expected error of at most `max_error`, None without."""
        schedule = self.heuristic(p, cpu)
        if max_error is None or self.error(p, schedule) <= max_error:
            return schedule
        if self.careful is not None:
            schedule = self.careful(p, cpu, max_error)
        return schedule if self.error(p, schedule) <= max_error else None

    def build(self, p: Problem, schedule: Any, cpu: Cpu, io: Io) -> Program:
        """The kernel for operands that lie as `io` says. Its text is not written yet.

        Raises:
            ScheduleError: the algorithm does not apply, the schedule cannot be right, padding has
                no room in the input's halo, or `add` does not lie like `dst`.
        """
        reason = self.refusal(p, cpu)
        check(reason is None, f"{self.name}: {reason}")
        if isinstance(p, ConvProblem):
            room = all(a >= b for a, b in zip(io.src.halo, p.padding, strict=True))
            check(room, f"a halo of {io.src.halo} has no room for padding {p.padding}")
            alike = not p.add or io.add.layout == io.dst.layout
            check(alike, f"a residual in {io.add.layout} cannot be added in {io.dst.layout}")
        check(self.gathers or not io.gathered, f"{self.name} cannot gather channels")
        key = key_of(self.generate, p, schedule, cpu, io)
        return replace(self.generate(p, schedule, cpu, io), key=key)

    def program(self, p: Problem, schedule: Any, cpu: Cpu) -> Program:
        """Build with the usual placement of operands (`Io.of`), and write the text.

        Raises:
            ScheduleError: as `build`, or there is no such layout.
        """
        try:
            io = Io.of(p, schedule.layout)
        except ValueError as error:
            raise ScheduleError(str(error)) from error
        program = self.build(p, schedule, cpu, io)
        program.write()
        return program

    def text(self, schedule: Any) -> str:
        """`direct(layout=NHWC, tile_h=1, ...)`: the schedule's name everywhere.

        An empty field is left out.
        """
        values = ((f.name, getattr(schedule, f.name)) for f in fields(schedule))
        written = ", ".join(f"{n}={word(v)}" for n, v in values if v != "")
        return f"{self.name}({written})"


def word(value: object) -> str:
    """A field's value as it is written in a schedule's text."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
