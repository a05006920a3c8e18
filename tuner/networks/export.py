"""Export a network that was tuned here, or elsewhere, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fastrun.graph.aot.export import Export
from fastrun.graph.aot.export import export as export_graph
from fastrun.graph.aot.systems import LINUX
from fastrun.graph.core.model import Graph
from fastrun.graph.core.problems import convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import make_plan
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.processors import NAMES, target, vectors
from fastrun.kernels.native.cache import cache_root
from fastrun.tuner.networks.load import ALL, load
from fastrun.tuner.networks.measured_choices import stored_choices
from fastrun.tuner.records.record import Conditions, Limits

if TYPE_CHECKING:
    import onnx

    from fastrun.tuner.store.database import Database


def export(
    source: str | Path | onnx.ModelProto,
    folder: str | Path,
    targets: Sequence[str] = ("native",),
    *,
    threads: int = 1,
    plan: Plan | str | Path | None = None,
    database: Database | str | Path | None = None,
    policy: str = "cached",
    shapes: Mapping[str, Sequence[int]] | None = None,
    name: str | None = None,
    embed: bool = False,
    max_weights: int | None = None,
    system: str = LINUX,
) -> Export:
    """Write a network as a C library that needs neither Python nor a compiler to be made.

    `targets` are kinds of processors of one architecture, such as "x86-64-v3", the best first; the
    library runs the first that its processor supports. "native" is this machine: its plan is chosen
    by `database` and `policy` for `threads`, as `fastrun.load` does. Other targets follow `plan`,
    if one is given, else what the database holds of a machine with vectors of the same kind, such
    as a device that was tuned, else the heuristics. `name` is the prefix of functions and files.
    With `embed` the weights lie in the library. The packed weights of each target take at most
    `max_weights` bytes. For the `system` "macos" or "windows" there are objects and a C file to
    link instead of libraries.

    What is written: lib`name`.so, lib`name`.a, `name`.h, `name`.weights, example.c, Makefile,
    `name`.pc, `name`-config.cmake, `name`.py (a loader that needs numpy only) and `name`.plan.

    Raises:
        ExportError: a target is unknown or of another architecture than the first, the name is no
            identifier of C, or the weights are too large, for the library or for `max_weights`.
        GraphError: the model or the plan cannot be used.
        OSError: the folder cannot be written.
    """
    graph = optimise(load_network(source, shapes))
    if isinstance(plan, str | Path):
        plan = Plan.load(plan)
    plans = dict[str, Plan]() if plan is None else dict.fromkeys(targets, plan)
    limits = Limits(weights=max_weights)
    for level in targets if plan is None else ():
        if level == "native":
            loaded = load(source, threads, database, policy, shapes, max_weights=max_weights)
            plans[level] = loaded.plan
        elif policy != "heuristic" and level in NAMES:
            made = _by_records(graph, database, target(level), threads, limits)
            if made:
                plans[level] = made
    return export_graph(
        graph, Path(folder), targets, plans, name, embed, threads, max_weights, system
    )


def _by_records(
    graph: Graph, database: Database | str | Path | None, cpu: Cpu, threads: int, limits: Limits
) -> Plan | None:
    """The plan for a level by what was measured on machines of its kind; None without any."""
    if database is None and not (cache_root() / "fastrun.db").exists():
        return None
    from fastrun.tuner.store.database import Database

    with ExitStack() as opened:
        if isinstance(database, Database):
            store = database
        else:
            store = opened.enter_context(Database(database, database is not None))
        wanted = {str(p) for p, _, _ in convolutions(graph)}
        counts = {
            e.machine: len(wanted & set(store.best_all(Conditions(e.machine, threads))))
            for e in store.environments()
            if vectors(e.features) == (cpu.machine, cpu.lanes)
        }
        machine = max(counts, key=lambda m: counts[m], default="")
        if not machine or not counts[machine]:
            return None
        each = 1 if limits.weights is None else ALL
        choose = stored_choices(store, cpu, threads, limits, each, machine=machine)
        return make_plan(graph, choose, cpu, threads=threads, max_weights=limits.weights)[0]
