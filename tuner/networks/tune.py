"""Tune targets within a budget: convolutions and attention, then the plans of whole networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from fastrun.graph.core.model import Graph
from fastrun.graph.core.problems import attentions, convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.rounding import roundings
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.networks.stored_plans import store_plan
from fastrun.tuner.networks.targets import Shapes, Target, Targets, merged, read_targets
from fastrun.tuner.networks.time_shares import TimeShares
from fastrun.tuner.records.affinity import Threads, thread_number
from fastrun.tuner.records.network_record import NetworkRecord
from fastrun.tuner.records.record import Conditions, Limits
from fastrun.tuner.search.budget import EFFORTS, Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.options import SearchOptions
from fastrun.tuner.search.progress import Progress
from fastrun.tuner.search.sampler_choice import Sampler
from fastrun.tuner.search.summary import Summary
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.standing import Standing, standings


@dataclass(frozen=True)
class Tuned:
    """What `tune` did and what the database knows now.

    `search` tells how the search went. `standings` has the naive, the heuristic's and the best time
    of every distinct convolution, in seconds. `finals` has the record of each network's final by
    the network's name: the seconds of all plans, and which of them `fastrun.load` now runs.
    """

    search: Summary
    standings: Sequence[Standing]
    finals: Mapping[str, NetworkRecord]


def tune(
    targets: Targets,
    database: Database | str | Path | None = None,
    budget: Budget | None = None,
    *,
    threads: Threads = 1,
    shapes: Shapes | None = None,
    regime: str = "hot",
    sampler: Sampler = "gp",
    options: SearchOptions | None = None,
    observe: Callable[[Progress], None] | None = None,
    quiet: bool = False,
) -> Tuned:
    """Tune networks, single convolutions or attention on this machine, as `fastrun tune` does.

    `targets` is one or several of: the name of a built-in network, the path of an ONNX file, a
    `ConvProblem` or `AttentionProblem`, or the text of one. All outcomes go into `database` (a
    Database, path or URL; by default the one in the cache folder); what it holds already is not
    measured again. The default budget is 8 seconds for each distinct problem. The times are those
    of `threads` threads ("auto": as many as this process can keep busy) and choose nothing for
    other numbers. `shapes` gives or overrides the shapes of the networks' inputs; it is needed
    where a model leaves sizes open.

    A share of the budget goes to a final of each network's plans; a final takes some seconds at
    least. A network that cannot be run has no final, only its problems are tuned. `regime` is
    "hot" or "cold-weights"; `sampler`, `options`, `observe` and `quiet` are those of
    `fastrun.fast_run`.

    An interrupt (Ctrl-C) ends the search in order, and there are no finals then; one during a final
    raises KeyboardInterrupt. What was measured until then is stored.

    Raises:
        ProblemError: a text is that of no problem.
        GraphError: there is no such network or file, or it cannot be used.
        ValueError: more threads than cores.
        SamplerError: there is no such sampler, or it failed.
        ScheduleError: `options.algorithms` names a field or value that there is not.
        WorkerDied: not even the heuristic's plan of a network could be run.
        DatabaseError: the database cannot be used, or an outcome cannot be stored.
    """
    asked = read_targets(targets, shapes)
    options = options or SearchOptions()
    problems = merged(asked, roundings(options.limits.error, Cpu.host()))
    if budget is None:
        effort = EFFORTS["normal"]
        budget = Budget((effort.seconds or 0.0) * len(problems), worth=effort.worth)
    whole = [target.name for target in asked if target.is_network and not target.lacks]
    graphs = {name: optimise(load_network(name, shapes)) for name in whole}
    threads = thread_number(threads)
    with ExitStack() as opened:
        if isinstance(database, Database):
            store = database
        else:
            store = opened.enter_context(Database(database))
        measurer = Measurer(threads, regime)
        search, finals = _tune(
            problems,
            graphs,
            store,
            budget,
            measurer,
            options,
            sampler=sampler,
            observe=observe,
            quiet=quiet,
        )
        conditions = Conditions.here(threads, regime)
        return Tuned(search, standings(store, problems, conditions, options.limits), finals)


def tune_network(
    graph: Graph, database: Database, threads: int, seconds: float, limits: Limits
) -> None:
    """Spend some `seconds` on an optimised network: on its convolutions, then on its final.

    Raises:
        As `fast_run` and `store_plan`.
        KeyboardInterrupt: what was measured until then is stored.
    """
    own = tuple((p, count) for p, count, _ in [*convolutions(graph), *attentions(graph)])
    problems = merged([Target(graph.name, own)], roundings(limits.error, Cpu.host()))
    budget, options = Budget(seconds=seconds), SearchOptions(limits=limits)
    graphs = {graph.name: graph}
    search, _ = _tune(problems, graphs, database, budget, Measurer(threads), options)
    if search.interrupted:
        raise KeyboardInterrupt


def _tune(
    problems: Sequence[tuple[Problem, int]],
    graphs: Mapping[str, Graph],
    database: Database,
    budget: Budget,
    measurer: Measurer,
    options: SearchOptions,
    **further: Any,
) -> tuple[Summary, dict[str, NetworkRecord]]:
    """Search schedules by `fast_run`, then run a final for each graph."""
    shares = TimeShares(budget, len(graphs), monotonic())
    part = shares.of_search()
    done = fast_run(problems, database, part, options=options, measurer=measurer, **further)
    finals: dict[str, NetworkRecord] = {}
    if done.interrupted:
        return done, finals
    threads, limits = measurer.threads, options.limits
    # A final without time left still takes the few seconds that it needs at least.
    for (name, graph), seconds in zip(graphs.items(), shares.of_finals(done.seconds), strict=True):
        finals[name] = store_plan(graph, database, threads, max(seconds, 0.0), limits, done.run)
    return done, finals
