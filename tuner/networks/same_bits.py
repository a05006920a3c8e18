"""Choices that leave a network's results as they are, to the bit, when it is tuned again.

A schedule is allowed if it computes the same bits as the one of the kept plan, on random operands.
Sums of one order of additions have the same bits whatever the tiles, the layout or the unrolling;
those of other algorithms mostly have not.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from fastrun.graph.core.model import Array, Graph
from fastrun.graph.core.ops import Conv, Gemm, Recurrent
from fastrun.graph.plan.choices import Choice, Choose
from fastrun.graph.plan.following import own_choices
from fastrun.graph.plan.plan import Plan
from fastrun.graph.plan.tasks import tasks
from fastrun.graph.planner import follow_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.runtime.weights import Block
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.program import pack_bias
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.rounding import rounds_weights
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.core.types import Types
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.runner import Buffers, Runner
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.networks.alternatives import PlanInputs
from fastrun.tuner.networks.outputs import normal_inputs


def keeping_bits(graph: Graph, plan: Plan, inputs: PlanInputs, cpu: Cpu) -> PlanInputs:
    """The inputs of plans, with only such choices as compute the bits of `plan`.

    Convolutions that the plan computes in other types than float32 keep their schedules.
    """
    todo = tasks(graph)
    own = own_choices(graph, todo, plan.forms)

    @functools.cache
    def same(p: Problem, text: str) -> bool:
        if any(text == choice.schedule for choice in own(p)):
            return True
        if p.types or not own(p):
            return False
        try:
            return np.array_equal(_bits(p, text, cpu), _bits(p, own(p)[0].schedule, cpu))
        except ScheduleError:
            return False

    def allowed(choose: Choose) -> Choose:
        def chosen(p: Problem) -> list[Choice]:
            known = {choice.schedule for choice in own(p)}
            further = [c for c in choose(p) if c.schedule not in known and same(p, c.schedule)]
            return [*own(p), *further]

        return chosen

    weighing = [task.output for task in todo if isinstance(task.node.op, Conv | Gemm | Recurrent)]
    known = sorted({plan.forms[output].types for output in weighing})
    rounding = [x for x in known if rounds_weights(Types.parse(x))]
    proposed = inputs.proposed
    return replace(
        inputs,
        guessed=own,
        known=allowed(inputs.known),
        several=allowed(inputs.several),
        rounded=lambda p: rounding,
        proposed=lambda p, layout: [text for text in proposed(p, layout) if same(p, text)],
    )


class BitsError(RuntimeError):
    """No plan was found whose results have the same bits."""


def same_results(graph: Graph, plan: Plan, other: Plan, cpu: Cpu, threads: int) -> bool:
    """Whether two plans of a network give the same bits for random inputs."""
    inputs = normal_inputs(graph)
    found = [
        Executable.of(follow_plan(graph, one, cpu), cpu, threads, one).run(inputs)
        for one in (plan, other)
    ]
    return all(np.array_equal(found[0][x], found[1][x], equal_nan=True) for x in found[0])


@functools.lru_cache(256)
def _bits(p: Problem, text: str, cpu: Cpu) -> Array:
    """The bits of what a schedule computes of random operands."""
    template, schedule = parse_schedule(text)
    program = template.program(p, schedule, cpu)
    operands = random_operands(p, seed=0)
    io, arrays = program.io, dict[str, Array]()
    arrays["src"] = io.src.pack(operands["x"])
    arrays["weights"] = program.pack_weights(operands["weights"])
    arrays["bias"] = pack_bias(operands["bias"] * np.float32(p.bias))
    arrays["add"] = io.add.pack(operands["add"]) if p.add else np.zeros(0, np.float32)
    arrays["dst"] = np.zeros(io.dst.size, np.float32)
    blocks = {name: _placed(values) for name, values in arrays.items()}
    sizes = program.shared_bytes, program.local_bytes
    shared, local = (Block(size + F32.bytes(READ_SLACK)) for size in sizes)
    symbols = [stage.symbol for stage in program.stages]
    runner = Runner(Library(ObjectCache().object(program.ir, cpu), symbols), program.stages)
    places = {name: block.address for name, block in blocks.items()}
    runner.run(Buffers(**places, shared=shared.address, local=(local.address,)))
    written = blocks["dst"].bytes[: arrays["dst"].nbytes].view(np.float32)
    return io.dst.unpack(written).view(np.uint32)


def _placed(values: Array) -> Block:
    block = Block(values.nbytes + F32.bytes(READ_SLACK))
    block.bytes[: values.nbytes] = values.view(np.uint8)
    return block
