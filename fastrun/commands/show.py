"""Take a kernel apart, or list the problems of a network."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastrun.options import conditions, shapes, shapes_of
from fastrun.tuner.networks.targets import is_problem
from fastrun.tuner.records.units import percent, plural, significant

if TYPE_CHECKING:
    from fastrun.graph.core.model import Graph
    from fastrun.graph.core.problems import DistinctProblem
    from fastrun.kernels.core.attention import Problem
    from fastrun.kernels.core.cpu import Cpu
    from fastrun.kernels.core.template import KernelTemplate
    from fastrun.tuner.records.record import Record


def options(parser: ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument(
        "algorithm",
        nargs="?",
        metavar="ALGORITHM",
        help="the kernel of this algorithm (default: the best known one)",
    )
    parser.add_argument(
        "--schedule",
        metavar="TEXT",
        help="the kernel of this schedule, as `fastrun best` prints it",
    )
    parser.add_argument("--ir", action="store_true", help="print only the LLVM IR")
    parser.add_argument("--asm", action="store_true", help="print only the assembly")
    parser.add_argument("--measure", action="store_true", help="check and time the kernel now")
    shapes(parser)
    conditions(parser)


def run(arguments: Namespace) -> int:
    """Take a kernel apart, or print what the passes make of a network."""
    if is_problem(arguments.target):
        return _show_kernel(arguments)
    return _show_network(arguments)


def _show_kernel(arguments: Namespace) -> int:
    from fastrun.kernels.core.attention import parse_problem
    from fastrun.kernels.core.cpu import Cpu
    from fastrun.kernels.core.template import ScheduleError
    from fastrun.kernels.native.compile import compile_assembly
    from fastrun.tuner.machine.probe import probe
    from fastrun.tuner.records.record import Conditions, Outcome
    from fastrun.tuner.report.listing import Listing, algorithm_lines, listing_lines, problem_lines
    from fastrun.tuner.store.database import existing
    from fastrun.tuner.terminal.prose import say

    problem, cpu = parse_problem(arguments.target), Cpu.host()
    with existing(arguments.db) as database:
        here = Conditions.here(arguments.threads, arguments.regime)
        ranking = database.ranking(problem, here, include_baselines=True)
    template, schedule, source = _pick(problem, arguments, ranking, cpu)
    listing = Listing.of(problem, template, schedule, cpu)
    if arguments.ir or arguments.asm:
        print(listing.program.ir if arguments.ir else compile_assembly(listing.program.ir, cpu))
        return 0
    text = template.text(schedule)
    record = next((r for r in ranking if r.ir_hash == listing.program.ir_hash), None)
    if arguments.measure:
        from fastrun.tuner.measure.measurer import remeasure

        record = remeasure(problem, text, arguments.threads, arguments.regime)
        if record.outcome != Outcome.CORRECT:
            reason = " ".join(record.reason.split())
            raise ScheduleError(f"{text} failed on {problem} ({record.outcome}): {reason}")
    print("\n".join(problem_lines(problem)))
    if arguments.algorithm is None and arguments.schedule is None:
        print("\nalgorithms, with the schedules of their heuristics")
        print("\n".join(algorithm_lines(problem, cpu)))
    peak = probe().peak_of(arguments.threads, template.products(problem.precision, schedule))
    title, *lines = listing_lines(listing, source, record, peak)
    print(f"\n{title}")
    end = lines.index("") if "" in lines else len(lines)
    for line in lines[:end]:
        say(line, indent=13)
    print("\n".join(lines[end:]))
    return 0


def _pick(
    problem: Problem, arguments: Namespace, ranking: Sequence[Record], cpu: Cpu
) -> tuple[KernelTemplate, Any, str]:
    """The algorithm and the schedule to show, and where the schedule comes from."""
    from fastrun.kernels.core.template import ScheduleError
    from fastrun.kernels.registry import every_template, heuristic_choice, parse_schedule

    name = arguments.algorithm
    if name is not None and name not in every_template():
        raise ScheduleError(f"no algorithm {name!r}: there are {', '.join(every_template())}")
    if arguments.schedule is not None:
        template, schedule = parse_schedule(arguments.schedule)
        if name not in (None, template.name):
            raise ScheduleError(f"{arguments.schedule!r} is no schedule of {name}")
        return template, schedule, "given"
    if name is not None and (reason := every_template()[name].refusal(problem, cpu)):
        raise ScheduleError(f"{name} cannot do {problem}: {reason}")
    for record in ranking:
        if record.algorithm == name or (name is None and not record.baseline):
            return *parse_schedule(record.schedule), "best measured"
    if name is not None:
        chosen = every_template()[name]
        return chosen, chosen.heuristic(problem, cpu), "its heuristic"
    return *heuristic_choice(problem, cpu), "heuristic"


def _show_network(arguments: Namespace) -> int:
    from fastrun.graph.core.problems import attentions, convolutions
    from fastrun.graph.networks import load_network
    from fastrun.graph.passes.pipeline import PASSES
    from fastrun.tuner.terminal.display import grid, screen

    graph = load_network(arguments.target, shapes_of(arguments))
    print(f"{graph.summary()}\n")
    if graph.notes:
        print("\n".join(graph.notes) + "\n")
    before, rows = _works(graph), [("as imported", str(len(graph.nodes)), "", "")]
    for optimise in PASSES:
        graph = optimise(graph)
        after = _works(graph)
        if after != before:
            gone, new = _listed(before - after), _listed(after - before)
            rows.append((optimise.__name__, str(len(graph.nodes)), gone, new))
        before = after
    grid(screen(), ("pass", "nodes>", "takes out", "puts in"), rows)
    print(f"\n{graph.summary()}\n")
    _print_problems(arguments.target, [*convolutions(graph), *attentions(graph)])
    _print_by_numpy(graph)
    _print_floats(graph)
    return 0


def _print_by_numpy(graph: Graph) -> None:
    """The nodes without a kernel, with the times that NumPy takes for them."""
    from fastrun.graph.runtime.numpy_costs import numpy_costs
    from fastrun.tuner.records.units import duration
    from fastrun.tuner.terminal.display import grid, screen

    found = [*numpy_costs(graph)]
    if not found:
        return
    known = sum(seconds or 0 for _, seconds in found)
    print(
        f"\n{plural(len(found), 'node')} without a kernel, computed by NumPy between kernels in "
        f"{duration(known)}:"
    )
    rows = [(node.label, duration(s) if s else "depends on data") for node, s in found]
    grid(screen(), ("node", "takes>"), rows)


def _print_floats(graph: Graph) -> None:
    """The nodes of a quantised network that run in float32, and why."""
    from fastrun.graph.core.errors import UnsupportedError
    from fastrun.graph.plan.byte_kernels import float_notes
    from fastrun.tuner.terminal.display import grid, screen

    if not graph.grids:
        return
    try:
        notes = [*float_notes(graph)]
    except UnsupportedError as error:  # only its convolutions can be tuned
        print(f"\nthe network cannot be run as a whole: {error}")
        return
    print(f"\n{len(notes)} nodes with quantised tensors run in float32{':' * bool(notes)}")
    if notes:
        grid(screen(), ("node", "why"), notes)


def _works(graph: Graph) -> Counter[str]:
    return Counter(node.work for node in graph.nodes)


def _listed(works: Counter[str]) -> str:
    return ", ".join(f"{count} {work}" for work, count in works.most_common())


def _print_problems(name: str, found: Sequence[DistinctProblem]) -> None:
    from fastrun.tuner.terminal.display import grid, screen

    if not found:
        print(f"{name} has no convolutions and no attention, so there is nothing to tune")
        return
    total = sum(count * p.macs for p, count, _ in found)
    rows = [
        (str(p), str(count), significant(p.macs / 1e6), percent(count * p.macs / total))
        for p, count, _ in found
    ]
    grid(screen(), ("problem", "n>", "MMAC>", "of all>"), rows)
    kinds = Counter[str]()
    for p, count, _ in found:
        kinds["attention layer" if str(p).startswith("attention") else "convolution"] += count
    numbers = " and ".join(plural(count, kind) for kind, count in kinds.items())
    print(
        f"{name}: {numbers}, {len(rows)} distinct, {significant(total / 1e6)} million multiply-adds"
    )
