"""Stored plans: the plans that won the finals of networks, used as long as they are current."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastrun.graph.build.steps import Arrangement
from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Graph
from fastrun.graph.plan.form import GUESSED, Costs
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import follow_plan, make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.rounding import roundings
from fastrun.tuner.networks.measured_choices import guessed_choices, stored_choices
from fastrun.tuner.networks.output_error import within_outputs
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.network_record import NetworkRecord
from fastrun.tuner.records.record import NO_LIMITS, Limits
from fastrun.tuner.store.database import Database

if TYPE_CHECKING:
    from fastrun.tuner.networks.alternatives import Propose

PROPOSALS = 6
"""Schedules of the cost model that are timed in place for each layer."""


def store_plan(
    graph: Graph,
    database: Database,
    threads: int,
    seconds: float,
    limits: Limits,
    run: str = "",
    strict: bool = False,
    kept: Plan | None = None,
) -> NetworkRecord:
    """Find the fastest plan of an optimised network by a final, and store it.

    The limit of the error is that of the outputs: layers get a lower one if theirs add up to more.
    With the plan `kept` so far, only plans whose results have the same bits as its are compared.

    Raises:
        BitsError: the fastest plan has other bits than the one kept; nothing is stored.
        NoTimeError: `seconds` are too short, and `strict` is true.
        UnsupportedError: a node cannot be run; the message names it.
        ValueError: there are more threads than cores.
        WorkerDied: the heuristic's plan could not be run.
        DatabaseError: the outcome cannot be stored.
    """
    # These are not needed to run a stored plan.
    from fastrun.tuner.machine.probe import probe
    from fastrun.tuner.networks.alternatives import SCHEDULES_PER_LAYOUTS, PlanInputs
    from fastrun.tuner.networks.costs import costs
    from fastrun.tuner.networks.final import network_final
    from fastrun.tuner.networks.same_bits import BitsError, keeping_bits, same_results

    cpu, moving = Cpu.host(), costs(probe(), threads)

    def by_records(own: Limits) -> tuple[Executable, str]:
        choose, rounded = stored_choices(database, cpu, threads, own), roundings(own.error, cpu)
        plan, made = make_plan(graph, choose, cpu, moving, threads, rounded)
        return Executable.of(made, cpu, threads, plan), ""

    own = limits
    if limits.error is not None:
        *_, own = within_outputs(graph, limits, cpu, threads, by_records)
    inputs = PlanInputs(
        guessed=functools.cache(guessed_choices(cpu, threads, own)),
        known=functools.cache(stored_choices(database, cpu, threads, own)),
        several=functools.cache(stored_choices(database, cpu, threads, own, SCHEDULES_PER_LAYOUTS)),
        costs=moving,
        rounded=roundings(own.error, cpu),
        proposed=functools.cache(_within(limits, cpu)),
    )
    if kept is not None:
        inputs = keeping_bits(graph, kept, inputs, cpu)
    final = network_final(graph, inputs, cpu, threads, seconds, strict)
    plan = final.plans[final.kept]
    if kept is not None and not same_results(graph, kept, plan, cpu, threads):
        raise BitsError(
            "the fastest plan gives other bits than the one kept so far, which stays: an operator "
            "other than a convolution adds in another order"
        )
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


def _within(limits: Limits, cpu: Cpu) -> Propose:
    """What the cost model proposes in a layout; nothing if there are limits, which it ignores."""

    from fastrun.tuner.model.cost_model import CostModel

    def propose(p: ConvProblem, layout: str) -> Sequence[str]:
        if limits != NO_LIMITS:
            return ()
        return CostModel.shipped(cpu).proposals(p, cpu, PROPOSALS, layout=layout)

    return propose


def stored_plan(
    graph: Graph,
    database: Database,
    cpu: Cpu,
    threads: int,
    limits: Limits,
    moving: Costs = GUESSED,
) -> tuple[Plan, Arrangement] | None:
    """The plan stored for a network, if today's generator still makes its code.

    `moving` are the expected costs of its moves.
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
        return None  # of an older planner
    return (plan, arrangement) if arrangement.ir_hash == newest.ir_hash else None


def _text(limits: Limits) -> str:
    values = {"max_error": limits.error, "max_workspace": limits.workspace}
    given = {name: value for name, value in values.items() if value is not None}
    return json.dumps(given) if given else ""
