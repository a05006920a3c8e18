"""A network ready to run: joins what the database knows to the planner.

Neither a missing database nor stale records keep a network from running: the heuristic steps in.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graph.choices import Choice, Choose, heuristic_choices
from graph.executor import Executable
from graph.networks import load_network
from graph.passes import optimise
from graph.plan import Plan, follow_plan, make_plan
from kernels.codegen.jit import cache_root
from kernels.core.cpu import Cpu
from kernels.core.layout import layout_pair
from kernels.core.problem import ConvProblem
from kernels.core.template import ScheduleError, parse_schedule

if TYPE_CHECKING:
    import onnx

    from tuner.database import Database

POLICIES = ("cached", "heuristic")

# What was measured with weights out of cache is closer to a network; else any measurement.
_REGIMES = ("cold-weights", "hot")

# Nobody knows how fast an unmeasured layout is. It must promise to be this much faster than what
# was measured before it is believed.
_DISTRUST = 1.3


def load(
    source: str | Path | onnx.ModelProto,
    threads: int = 1,
    database: Database | str | Path | None = None,
    policy: str = "cached",
    shapes: Mapping[str, Sequence[int]] | None = None,
    plan: Plan | str | Path | None = None,
) -> Executable:
    """A built-in network by name, an ONNX file or an ONNX model, ready to run.

    `shapes` gives or overrides the shapes of inputs. The policy `cached` uses what `database`
    holds for this machine and number of threads (a Database, path or URL; by default the one in
    the cache folder), and the heuristic for the rest; `heuristic` looks at no database. With
    `plan`, or the path of its file, nothing is chosen at all.

    Raises:
        GraphError: the model or the plan cannot be used; the message says which node and why.
        ValueError: there is no such policy, or less than one thread.
        DatabaseError: the database given cannot be read.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}: use one of {', '.join(POLICIES)}")
    if threads < 1:
        raise ValueError(f"cannot run on {threads} threads")
    cpu = Cpu.host()
    graph = optimise(load_network(source, shapes))
    if plan is not None:
        followed = plan if isinstance(plan, Plan) else Plan.load(plan)
        return Executable.of(follow_plan(graph, followed, cpu), cpu, threads, followed)
    choose = heuristic_choices(cpu)
    if policy == "cached":
        choose = _with_database(choose, cpu, threads, database)
    made, arrangement = make_plan(graph, choose, cpu)
    return Executable.of(arrangement, cpu, threads, made)


def _with_database(
    otherwise: Choose, cpu: Cpu, threads: int, database: Database | str | Path | None
) -> Choose:
    """What the database knows, filled up with what the heuristic guesses."""
    if database is None and not os.path.exists(cache_root() / "fastrun.db"):
        warnings.warn(
            "nothing is tuned on this machine: running by heuristics (`fastrun tune` measures)",
            stacklevel=3,
        )
        return otherwise
    # Running a tuned network from a plan or by heuristics takes no SQL.
    from tuner.database import Database, DatabaseError

    try:
        # One's own is migrated where it is of an older schema, somebody else's left as it is.
        store = (
            database
            if isinstance(database, Database)
            else Database(database, read_only=database is not None)
        )
    except DatabaseError as error:
        if database is not None:
            raise
        warnings.warn(f"{error}; running by heuristics", stacklevel=3)
        return otherwise

    def choose(p: ConvProblem) -> list[Choice]:
        known = _measured(store, p, cpu, threads)
        guesses = otherwise(p)
        if not known:
            return list(guesses)
        layouts = {(choice.src, choice.dst) for choice in known}
        # Guesses are good for comparing guesses only: the best one is as good as the best known.
        scale = min(c.seconds for c in known) / min(c.seconds for c in guesses) * _DISTRUST
        return known + [
            Choice(c.schedule, c.src, c.dst, c.seconds * scale)
            for c in guesses
            if (c.src, c.dst) not in layouts
        ]

    return choose


def _measured(store: Database, p: ConvProblem, cpu: Cpu, threads: int) -> list[Choice]:
    """The best schedule measured for each pair of layouts, as far as it is still what it was."""
    from tuner.standing import is_current

    for regime in _REGIMES:
        found: dict[object, Choice] = {}
        for record in store.ranking(p, cpu.fingerprint, threads, regime):
            try:
                _, schedule = parse_schedule(record.schedule)
            except ScheduleError:
                continue  # of an algorithm as it was, or of one that is no more
            pair = layout_pair(schedule.layout)
            if pair not in found and is_current(record):
                found[pair] = Choice(record.schedule, *pair, record.seconds_per_call)
        if found:
            return list(found.values())
    return []
