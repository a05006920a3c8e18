"""A network ready to run: joins what the database knows to the planner.

Neither a missing database nor stale records keep a network from running: the heuristic steps in.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graph.executor import Executable
from graph.forms import GUESSED
from graph.model import Graph
from graph.networks import load_network
from graph.passes import optimise
from graph.plan import Plan, follow_plan, make_plan
from graph.steps import Arrangement
from kernels.codegen.jit import cache_root
from kernels.core.cpu import Cpu
from tuner.choosing import guessed_choices, stored_choices

if TYPE_CHECKING:
    import onnx

    from tuner.database import Database
    from tuner.tables import Bounds

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
    `profile`: tune for so many `seconds` first, into the database; then as `cached`.

    Convolutions use only schedules whose error, an rms relative to the output's, is at most
    `max_error` and whose workspace is at most `max_workspace` bytes; both are measured, or expected
    of what was not. With `plan`, or the path of its file, nothing is chosen at all.

    Raises:
        GraphError: the model or the plan cannot be used, or nothing stays within the limits.
        ValueError: there is no such policy, less than one thread, or more than cores to profile.
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
    limits: Bounds = {"max_error": max_error, "max_workspace": max_workspace}
    store = None
    if policy == "profile":
        store = _profiled(graph, database, threads, seconds, limits)
    elif policy != "heuristic":
        store = _opened(database)
    planned = 1 if policy == "reproducible" else threads
    made, arrangement = _planned(graph, store, cpu, planned, limits)
    return Executable.of(arrangement, cpu, threads, made)


def _planned(
    graph: Graph, store: Database | None, cpu: Cpu, threads: int, limits: Bounds
) -> tuple[Plan, Arrangement]:
    """The plan that the database keeps, or one by what is known of layers."""
    from tuner.machine import on_file
    from tuner.moves import costs

    choose = guessed_choices(cpu, threads, limits)
    if store:
        from tuner.plans import kept_plan

        if kept := kept_plan(graph, store, cpu, threads, limits):
            return kept
        choose = stored_choices(store, cpu, threads, limits)
    report = on_file()
    return make_plan(graph, choose, cpu, costs(report, threads) if report else GUESSED, threads)


def _opened(database: Database | str | Path | None) -> Database | None:
    """The database to look into; None where there is none that can be read, which is said."""
    if database is None and not os.path.exists(cache_root() / "fastrun.db"):
        warnings.warn(
            "nothing is tuned on this machine: running by heuristics (`fastrun tune` measures)",
            stacklevel=3,
        )
        return None
    # Running a tuned network from a plan or by heuristics takes no SQL.
    from tuner.database import Database, DatabaseError

    if isinstance(database, Database):
        return database
    try:
        # One's own is migrated where it is of an older schema, somebody else's left as it is.
        return Database(database, read_only=database is not None)
    except DatabaseError as error:
        if database is not None:
            raise
        warnings.warn(f"{error}; running by heuristics", stacklevel=3)
        return None


def _profiled(
    graph: Graph,
    database: Database | str | Path | None,
    threads: int,
    seconds: float,
    limits: Bounds,
) -> Database:
    """The database, with what tuning the network for so long has found."""
    from tuner.database import Database
    from tuner.plans import tune

    store = database if isinstance(database, Database) else Database(database)
    tune(graph, store, threads, seconds, limits)
    return store
