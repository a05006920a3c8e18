"""A network ready to run: joins what the database knows to the planner.

Neither a missing database nor stale records keep a network from running: the heuristic steps in.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fastrun.graph.build.steps import Arrangement
from fastrun.graph.core.model import Graph
from fastrun.graph.core.problems import convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import Choose
from fastrun.graph.plan.forms import GUESSED, Costs
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import carried_out, follow_plan, make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.native.cache import cache_root
from fastrun.tuner.networks.first_use import verified
from fastrun.tuner.networks.measured_choices import guessed_choices, stored_choices
from fastrun.tuner.records.affinity import check_threads
from fastrun.tuner.records.record import Limits
from fastrun.tuner.records.units import plural

if TYPE_CHECKING:
    import onnx

    from fastrun.tuner.store.database import Database

# Seconds to wait for a lock before the heuristic steps in.
_PATIENCE = 2.0

POLICIES = ("cached", "heuristic", "reproducible", "profile")


def load(
    source: str | Path | onnx.ModelProto,
    threads: int = 1,
    database: Database | str | Path | None = None,
    policy: str = "cached",
    shapes: Mapping[str, Sequence[int]] | None = None,
    plan: Plan | str | Path | None = None,
    *,
    max_error: float | None = None,
    max_workspace: int | None = None,
    seconds: float = 60.0,
) -> Executable:
    """A built-in network by name, an ONNX file or an ONNX model, ready to run.

    `shapes` gives or overrides the shapes of inputs. What runs is decided by the policy:

    `cached`: the plan that `database` (a Database, path or URL; by default the one in the cache
    folder) keeps for the network on this machine with so many threads; else a plan by the times of
    layers that it holds, and the heuristic for the rest.
    `heuristic`: no database is looked at.
    `reproducible`: as `cached` for one thread, whatever `threads` is, so that all numbers of
    threads give the same bits.
    `profile`: where the database keeps no plan, tune for so many `seconds` first, into the
    database; then as `cached`.

    A database that is missing, locked, damaged, of a newer schema or stale breaks nothing: the
    heuristic steps in, and one warning says why and what to do.

    Convolutions use only schedules whose error, an rms relative to the output's, is at most
    `max_error` and whose workspace is at most `max_workspace` bytes; both are measured, or expected
    of what was not.

    With `plan`, or the path of its file, nothing is chosen, but where this machine cannot build
    what it says, which a warning tells. One that another machine made, or that was edited, runs
    once beside the heuristic's plan, on normal inputs, and is refused if it computes anything else.

    Raises:
        GraphError: the model or the plan cannot be used, or nothing stays within the limits.
        ValueError: there is no such policy, less than one thread, or more than cores that this
            process may use.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}: use one of {', '.join(POLICIES)}")
    check_threads(threads)
    cpu = Cpu.host()
    graph = optimise(load_network(source, shapes))
    if plan is not None:
        network, remark = _by_plan(graph, plan, cpu, threads)
        if remark:
            warnings.warn(remark, stacklevel=2)
        return network
    limits = Limits(max_error, max_workspace)
    found, remark = None, ""
    planned = 1 if policy == "reproducible" else threads
    if policy != "heuristic":
        tuning = seconds if policy == "profile" else 0.0
        found, remark = _by_database(graph, database, cpu, planned, limits, tuning)
    if remark:
        warnings.warn(remark, stacklevel=2)
    made, arrangement = found or _planned(
        graph, guessed_choices(cpu, planned, limits), cpu, planned
    )
    return Executable.of(arrangement, cpu, threads, made)


def _by_plan(
    graph: Graph, plan: Plan | str | Path, cpu: Cpu, threads: int
) -> tuple[Executable, str]:
    """The network by a plan, compared with this machine's own if it is not one; and a remark."""
    given = plan if isinstance(plan, Plan) else Plan.load(plan)
    arrangement = follow_plan(graph, given, cpu, _moving(threads))
    done = carried_out(given, arrangement)
    changed = [name for name, form in done.forms.items() if form != given.forms[name]]
    remark = (
        f"this machine cannot build what the plan of {given.network!r} says of "
        f"{plural(len(changed), 'step')} ({', '.join(changed[:3])}{', ...' * (len(changed) > 3)}): "
        "the heuristic chooses for those"
    )
    if given.machine == cpu.fingerprint:
        network = Executable.of(arrangement, cpu, threads, done)
    else:
        network = verified(graph, done, arrangement, cpu, threads)
    return network, remark if changed else ""


def _by_database(
    graph: Graph,
    database: Database | str | Path | None,
    cpu: Cpu,
    threads: int,
    limits: Limits,
    tuning: float,
) -> tuple[tuple[Plan, Arrangement] | None, str]:
    """The plan by what the database knows, None where it cannot be asked; and what to remark."""
    own = database is None
    if own and not tuning and not os.path.exists(cache_root() / "fastrun.db"):
        return None, "nothing is tuned here: running by heuristics (`fastrun tune` measures)"
    # Running a tuned network from a plan or by heuristics takes no SQL.
    from fastrun.tuner.store.database import Database, DatabaseError

    try:
        with ExitStack() as opened:
            if isinstance(database, Database):
                store = database
            else:
                # One's own is migrated where it is of an older schema, another is left as it is.
                store = Database(database, not own and not tuning, timeout=_PATIENCE)
                opened.enter_context(store)
            return _by_store(graph, store, cpu, threads, limits, tuning)
    except DatabaseError as error:
        return None, f"{error}; running by heuristics"


def _by_store(
    graph: Graph, store: Database, cpu: Cpu, threads: int, limits: Limits, tuning: float
) -> tuple[tuple[Plan, Arrangement], str]:
    """The plan that an open database keeps, or one by its records; and what to remark."""
    from fastrun.tuner.networks.stored_plans import kept_plan, tune

    moving = _moving(threads)
    kept = kept_plan(graph, store, cpu, threads, limits, moving)
    if tuning and not kept:
        tune(graph, store, threads, tuning, limits)
        kept = kept_plan(graph, store, cpu, threads, limits, moving)
    if kept:
        return kept, ""
    missing = set[ConvProblem]()
    choose = stored_choices(store, cpu, threads, limits, missing=missing.add)
    return _planned(graph, choose, cpu, threads), _remark(graph, store.name, missing)


def _planned(graph: Graph, choose: Choose, cpu: Cpu, threads: int) -> tuple[Plan, Arrangement]:
    return make_plan(graph, choose, cpu, _moving(threads), threads)


def _moving(threads: int) -> Costs:
    """What moving data takes, as measured if this machine ever was."""
    from fastrun.tuner.machine.probe import on_file
    from fastrun.tuner.networks.costs import costs

    report = on_file()
    return costs(report, threads) if report else GUESSED


def _remark(graph: Graph, database: str, missing: set[ConvProblem]) -> str:
    """What the heuristic has to do for lack of records that today's kernels still make."""
    if not missing:
        return ""
    return (
        f"{database} holds no current measurement of {len(missing)} of "
        f"{plural(len(convolutions(graph)), 'convolution')} of {graph.name}: the heuristic chooses "
        "for those (`fastrun tune` measures them)"
    )
