"""A listing of a kernel: the program of its schedule, and the compiler's machine code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastrun.kernels.core.attention import AttentionProblem, Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.program import Program
from fastrun.kernels.core.template import KernelTemplate
from fastrun.kernels.native.assembly import Facts, facts
from fastrun.kernels.registry import applicable, every_template
from fastrun.tuner.records.record import Record
from fastrun.tuner.records.units import duration, percent, plural, significant, size, span

_LINES = 60
"""Lines of a hot loop that are shown. Unrolled loops have hundreds."""


@dataclass(frozen=True)
class Listing:
    """A problem, a schedule of it, and the program they make."""

    problem: Problem
    template: KernelTemplate
    schedule: Any
    program: Program
    facts: Facts
    cpu: Cpu

    @classmethod
    def of(cls, problem: Problem, template: KernelTemplate, schedule: Any, cpu: Cpu) -> Listing:
        """Build and compile a schedule.

        Raises:
            ScheduleError: the schedule does not fit the problem.
        """
        program = template.program(problem, schedule, cpu)
        return cls(problem, template, schedule, program, facts(program, cpu), cpu)


def problem_lines(p: Problem) -> Iterator[str]:
    """The size of a problem, in operations and bytes."""
    yield str(p)
    source, weights, result = map(F32.bytes, p.sizes)
    moved = source + weights + result
    yield f"  {significant(p.flops / 1e6)} MFLOP, output {'x'.join(map(str, p.output_shape))}"
    kind = "mask" if isinstance(p, AttentionProblem) else "weights"
    yield (
        f"  {size(source)} in, {size(weights)} of {kind}, {size(result)} out: "
        f"{significant(p.flops / moved)} FLOP per byte"
    )


def algorithm_lines(p: Problem, cpu: Cpu) -> Iterator[str]:
    """The algorithms for a problem with their schedules; for others why they do not apply."""
    able = applicable(p, cpu)
    for template in able:
        yield f"  {template.text(template.heuristic(p, cpu))}"
    for template in every_template().values():
        if template not in able and isinstance(p, template.problem):
            yield f"  not {template.name}: {template.refusal(p, cpu)}"


def listing_lines(
    listing: Listing, source: str, record: Record | None, peak: float
) -> Iterator[str]:
    """The properties of a kernel and its hot loop.

    `source` is the source of the schedule, `record` its measurement, if there is one. Shares are of
    `peak`, in FLOP/s, that of the schedule's kind of dot product.
    """
    program, found = listing.program, listing.facts
    stages = ", ".join(f"{s.symbol} ({plural(s.tasks, 'task')})" for s in program.stages)
    text = program.ir
    yield f"{listing.template.text(listing.schedule)}   [{source}]"
    yield f"  stages     {stages}"
    yield f"  IR         {len(text.splitlines())} lines, {size(len(text))}, hash {program.ir_hash}"
    yield f"  code       {size(found.code_bytes)}"
    yield (
        f"  workspace  {size(program.shared_bytes)} shared, {size(program.local_bytes)} per thread"
    )
    yield (
        f"  hot loop   {_products(found)} of {plural(found.instructions, 'instruction')}, "
        f"{found.memory_references} memory references"
    )
    spills = "" if not found.stack_references else ": values that found no register, or addresses"
    yield (
        f"  code uses  {found.vector_registers} vector registers, "
        f"{plural(found.stack_references, 'stack reference')} in the hot loop{spills}"
    )
    for block in listing.template.levels(listing.problem, listing.schedule, listing.cpu):
        share = f"{size(block.size)}, {percent(block.share(listing.cpu))} of it"
        yield f"  {block.level:<10} {block.fields}: {block.holds} ({share})"
    if found.bound:
        yield f"  predicted  at most {percent(found.bound)} of peak, by the hot loop's instructions"
    else:
        yield "  predicted  nothing: no product in the hot loop"
    yield f"  measured   {_measured(listing.problem, record, peak)}"
    # LLVM's comments around inline assembly are left out.
    lines = found.hot_loop.splitlines()
    shown = [line for line in lines if not line.lstrip().startswith(("#", "//"))]
    if shown:
        yield ""
        yield from (line.expandtabs(8) for line in shown[:_LINES])
        if len(shown) > _LINES:
            yield f"        ... and {len(shown) - _LINES} more; --asm shows all of the kernel"


def _products(found: Facts) -> str:
    """What the hot loop multiplies by."""
    return plural(found.tiles, "tile product") if found.tiles else f"{found.fmas} vector FMAs"


def _measured(p: Problem, record: Record | None, peak: float) -> str:
    if record is None or not record.samples:
        return "not yet; `fastrun tune` measures"
    took = record.seconds_per_call
    error = f", error {record.errors.max:.1e} of the output's rms" if record.errors else ""
    clock = span([mhz / 1e3 for mhz in record.clocks], "GHz")
    at = f", at {clock}" if record.clocks else ""
    return (
        f"{duration(took)}, {significant(p.flops / took / 1e9)} GFLOP/s, "
        f"{percent(p.flops / took / peak)} of peak{error}{at} "
        f"({record.stage}, {plural(len(record.samples), 'sample')}, {record.regime}, "
        f"{plural(record.threads, 'thread')})"
    )
