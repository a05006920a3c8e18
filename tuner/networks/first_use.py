"""A plan of another machine is used only if it computes the same as this machine's own plan."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace
from pathlib import Path

from fastrun.graph.build.steps import Arrangement
from fastrun.graph.core.errors import PlanError
from fastrun.graph.core.model import Graph
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.native.cache import cache_root
from fastrun.kernels.native.compile import llvm_version
from fastrun.tuner.networks.outputs import difference, limit, normal_inputs


def verified(
    graph: Graph, plan: Plan, arrangement: Arrangement, cpu: Cpu, threads: int
) -> Executable:
    """The network by a plan, after a comparison with the heuristic's plan on normal inputs.

    If the outputs agree, a file in the cache folder records that. The comparison is then skipped
    as long as the code, this machine and `threads` stay the same.

    Raises:
        PlanError: the outputs differ.
    """
    mark = _mark(graph, plan, arrangement, cpu, threads)
    if mark.exists():
        return Executable.of(arrangement, cpu, threads, plan)
    inputs = normal_inputs(graph)
    own, made = make_plan(graph, heuristic_choices(cpu), cpu, threads=threads)
    truth = Executable.of(made, cpu, threads, own).run(inputs)
    network = Executable.of(arrangement, cpu, threads, plan)
    error, most = difference(truth, network.run(inputs)), limit(graph)
    if not error <= most:
        raise PlanError(
            f"the plan of {plan.network!r} computes something else than this machine's own, off "
            f"by {error:.2g} of an output's rms (limit {most:g}): plan again on this machine"
        )
    # If the file cannot be written, the next start compares again.
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return network


def _mark(graph: Graph, plan: Plan, arrangement: Arrangement, cpu: Cpu, threads: int) -> Path:
    forms = [(name, replace(form, seconds=0.0)) for name, form in plan.forms.items()]
    facts = graph.digest, forms, arrangement.ir_hash, llvm_version(), cpu.fingerprint, threads
    return cache_root() / "plans" / hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
