"""Plans that the database keeps for whole networks: found by a final, used while current."""

from __future__ import annotations

import functools
import json

from fastrun.graph.build.steps import Arrangement
from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Graph
from fastrun.graph.core.problems import convolutions
from fastrun.graph.plan.forms import GUESSED, Costs
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import follow_plan
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.networks.measured_choices import guessed_choices, stored_choices
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.network_record import NetworkRecord
from fastrun.tuner.records.record import Limits
from fastrun.tuner.store.database import Database

FINALS = 0.15
"""Of a budget, what goes to finals of whole networks."""


def tune(graph: Graph, database: Database, threads: int, seconds: float, limits: Limits) -> None:
    """Spend so many seconds on an optimised network: on its layers, then on its final.

    Raises:
        As `settle`.
        KeyboardInterrupt: what was measured until then is stored.
    """
    from fastrun.tuner.search.budget import Budget
    from fastrun.tuner.search.fastrun import fast_run

    problems = [(p, count) for p, count, _ in convolutions(graph)]
    done = fast_run(
        problems,
        database,
        Budget((1 - FINALS) * seconds),
        threads=threads,
        max_error=limits.error,
        max_workspace=limits.workspace,
    )
    if done.interrupted:
        raise KeyboardInterrupt
    settle(graph, database, threads, FINALS * seconds, limits, done.run)


def settle(
    graph: Graph,
    database: Database,
    threads: int,
    seconds: float,
    limits: Limits,
    run: str = "",
    strict: bool = False,
) -> NetworkRecord:
    """Find the plan of an optimised network that is fastest as a whole, and keep it.

    Raises:
        NoTimeError: `strict`, and so many seconds are too short.
        UnsupportedError: a node cannot be run; it is named.
        ValueError: more threads than cores.
        WorkerDied: not even the heuristic's plan could be run.
        DatabaseError: the outcome cannot be stored.
    """
    # Running by a plan that is kept takes no processes to time others.
    from fastrun.tuner.machine.probe import probe
    from fastrun.tuner.networks.alternatives import LEADERS, Knowledge
    from fastrun.tuner.networks.costs import costs
    from fastrun.tuner.networks.final import network_final

    cpu = Cpu.host()
    knowledge = Knowledge(
        guessed=functools.cache(guessed_choices(cpu, threads, limits)),
        known=functools.cache(stored_choices(database, cpu, threads, limits)),
        leaders=functools.cache(stored_choices(database, cpu, threads, limits, LEADERS)),
        costs=costs(probe(), threads),
    )
    final = network_final(graph, knowledge, cpu, threads, seconds, strict)
    plan = final.plans[final.kept]
    record = NetworkRecord(
        network=graph.name,
        graph=graph.digest,
        machine=cpu.fingerprint,
        threads=threads,
        limits=_text(limits),
        toolchain=toolchain(),
        ir_hash=follow_plan(graph, plan, cpu).ir_hash,
        kept=final.kept,
        plan=str(plan),
        samples=final.samples,
        run=run,
    )
    database.add_network(record)
    return record


def kept_plan(
    graph: Graph,
    database: Database,
    cpu: Cpu,
    threads: int,
    limits: Limits,
    moving: Costs = GUESSED,
) -> tuple[Plan, Arrangement] | None:
    """The plan kept for a network under these conditions, if today's generator makes its code.

    `moving` says what its moves should take.
    """
    found = database.networks(
        graph=graph.digest, machine=cpu.fingerprint, threads=threads, limits=_text(limits)
    )
    if not found:
        return None
    newest = found[-1]
    if newest.toolchain.partition(",")[0] != toolchain().partition(",")[0]:
        return None
    try:
        plan = Plan.parse(newest.plan)
        arrangement = follow_plan(graph, plan, cpu, moving)
    except GraphError:
        return None  # of a planner as it was
    return (plan, arrangement) if arrangement.ir_hash == newest.ir_hash else None


def _text(limits: Limits) -> str:
    values = {"max_error": limits.error, "max_workspace": limits.workspace}
    given = {name: value for name, value in values.items() if value is not None}
    return json.dumps(given) if given else ""
