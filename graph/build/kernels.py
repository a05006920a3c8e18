"""Builds the kernel that runs a task where its tensors lie.

A convolution or attention takes the first of its schedules that can be built there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, repeat

import numpy as np

from fastrun.graph.build import elementwise, strided
from fastrun.graph.build.blocked import blocked
from fastrun.graph.build.built import Built, constant
from fastrun.graph.build.moves import stored_as
from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Array, Graph, Tensor
from fastrun.graph.core.ops import (
    Affine,
    Attention,
    Binary,
    ByteFunction,
    ChannelShuffle,
    Clip,
    Conv,
    DepthwiseVolume,
    Gemm,
    GroupNorm,
    LayerNorm,
    Pool,
    Recurrent,
    Reduce,
    Rotary,
    Unary,
    Where,
)
from fastrun.graph.core.precision import conv_scales
from fastrun.graph.core.shapes import Shape4, pair
from fastrun.graph.plan.form import Form, typed_problem
from fastrun.graph.plan.kinds import is_dense, is_global_pool, pool_spec
from fastrun.graph.plan.tasks import Task
from fastrun.graph.reference.interpreter import evaluate
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, U8
from fastrun.kernels.core.layout import Placement, layout_text
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.rounding import rounds_weights
from fastrun.kernels.core.scales import scales, table
from fastrun.kernels.core.template import ScheduleError, check
from fastrun.kernels.core.types import Types
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.ops import (
    attention,
    dense,
    group_norm,
    layer_norm,
    pool,
    reduce,
    rotary,
    shuffle,
    volume,
)
from fastrun.kernels.ops.dense import Dense
from fastrun.kernels.registry import applicable, parse_schedule


def build(
    graph: Graph,
    task: Task,
    form: Form,
    schedules: Iterable[str],
    cpu: Cpu,
    reads: list[Placement],
    dst: Placement,
    gathered: bool = False,
) -> Built:
    """The kernel of a task that reads tensors placed as `reads` and leaves one placed as `dst`.

    Only convolutions and attention have `schedules`, the fastest first, and only convolutions
    inputs that are `gathered` (see `Io`).

    Raises:
        UnsupportedError: there is no kernel for this use of the operator.
    """
    try:
        built = _built(graph, task, form, schedules, cpu, reads, dst, gathered)
        return replace(built, program=ObjectCache().named(built.program))
    except ScheduleError as error:
        raise UnsupportedError(f"node {task.node.label} cannot be run: {error}") from error


def _built(
    graph: Graph,
    task: Task,
    form: Form,
    schedules: Iterable[str],
    cpu: Cpu,
    reads: list[Placement],
    dst: Placement,
    gathered: bool,
) -> Built:
    op, node = task.node.op, task.node
    src = reads[0]
    if kernel := blocked(graph, task, cpu, reads, dst):
        return kernel
    match op:
        case Conv():
            problem = typed_problem(graph, task, form)
            io = Io(src, dst, reads[1] if problem.add else dst, gathered)
            program, text = _convolution(problem, schedules, cpu, io)
            bias = constant(graph, task, 2).reshape(-1) if problem.bias else None
            if problem.precision.integer:
                filters = graph.integers(node.inputs[1]).reshape(problem.weight_shape)
                known = conv_scales(graph, node, problem.precision.dst is U8)
                operand = known.operand(problem, filters, bias)
                return Built(program, text, filters, operand)
            filters = graph.constants[node.inputs[1]].reshape(problem.weight_shape)
            return Built(program, text, filters, np.zeros(problem.oc) if bias is None else bias)
        case DepthwiseVolume():
            return _volume(graph, task, op, cpu, src, dst)
        case Gemm() if is_dense(graph, task):
            weights, bias = _dense(graph, task, op)
            dtype = Types.parse(form.types).weights
            spec = Dense(True, activation=op.activation, weights=dtype)
            program = dense.build(spec, cpu, src, dst)
            return Built(program, "dense", weights, bias)
        case Recurrent():
            dtype = Types.parse(form.types).weights
            return strided.recurrent_layer(graph, task, op, cpu, reads, dst, dtype)
        case Pool() | Reduce() if function := _over_rows(graph, task, src, dst):
            spec4 = reduce.Reduce(function, (2, 3))
            program = reduce.reduce(spec4, cpu, *(strided.view(x, _shape(x)) for x in (src, dst)))
            built = Built(program, "strided")
        case Pool():
            built = Built(pool.build(pool_spec(op), cpu, src, dst), "pool")
        case Attention():
            fixed = node.input(2) in graph.constants
            mask = constant(graph, task, 2) if fixed else None
            context = reads[1] if node.input(1) else None
            computed = reads[-1] if node.input(2) and not fixed else None
            shape = () if mask is None else mask.shape
            planned = _planned(schedules)
            program = attention.build(op, cpu, src, dst, context, shape, computed, planned)
            built = Built(program, form.algorithm, mask)
        case Rotary():
            factors = np.stack([constant(graph, task, i) for i in (1, 2)])
            built = Built(rotary.build(op, cpu, src, dst), "rotary", factors)
        case LayerNorm():
            pair = np.zeros((2, dst.c), np.float32)
            for i, _ in enumerate(filter(None, node.inputs[1:])):
                pair[i] = constant(graph, task, i + 1).reshape(-1)
            built = Built(layer_norm.build(op, cpu, src, dst), "layer_norm", pair)
        case GroupNorm():
            pair = np.stack([constant(graph, task, i).reshape(-1) for i in (1, 2)])
            built = Built(group_norm.build(op, cpu, src, dst), "group_norm", pair)
        case Reduce() if is_global_pool(graph, task):
            whole = pool.Pool({"mean": "average", "max": "max"}[op.function], (src.h, src.w))
            built = Built(pool.build(whole, cpu, src, dst), "pool")
        case ChannelShuffle() if len(reads) > 1:
            program = shuffle.build(shuffle.Shuffle(op.groups), cpu, src, dst, reads[1])
            return Built(program, "shuffle")
        case Unary() | Clip() | Affine() | Binary() | Where() | ByteFunction():
            built = elementwise.build(graph, task, cpu, reads, dst)
        case _:
            built = strided.build(graph, task, cpu, reads, dst)
    return _with_scales(graph, task, reads, dst, built)


def _volume(
    graph: Graph, task: Task, op: DepthwiseVolume, cpu: Cpu, src: Placement, dst: Placement
) -> Built:
    weights = constant(graph, task, 1)
    bias = constant(graph, task, 2) if task.node.input(2) else np.zeros(src.c)
    depth, kernel = graph.shape(task.reads[0])[2], weights.shape[2:]
    spec = volume.Volume(depth, kernel, op.stride, op.padding, op.dilation, op.activation)
    return Built(volume.build(spec, cpu, src, dst), "volume", weights, bias)


def _planned(schedules: Iterable[str]) -> attention.Schedule | None:
    """The first schedule of attention, if there is one."""
    for text in schedules:
        if "(" in text:
            _, schedule = parse_schedule(text)
            check(isinstance(schedule, attention.Schedule), f"{text} is no schedule of attention")
            found: attention.Schedule = schedule
            return found
    return None


def _over_rows(graph: Graph, task: Task, src: Placement, dst: Placement) -> str:
    """The reduction of the rows of each channel that a pool over all pixels in NCHW is, or "".

    It sums vectors of neighbouring pixels, where a pool adds one pixel after another.
    """
    op = task.node.op
    if src.layout.name != "NCHW" or not src.dtype is dst.dtype is F32:
        return ""
    if isinstance(op, Reduce):
        return op.function if is_global_pool(graph, task) else ""
    assert isinstance(op, Pool)
    whole = pair(op.kernel, 1) == (src.h, src.w) and not any(op.padding)
    return "mean" if whole and op.function == "average" and set(op.dilation) == {1} else ""


def _shape(where: Placement) -> Shape4:
    return where.n, where.c, where.h, where.w


def _convolution(p: ConvProblem, schedules: Iterable[str], cpu: Cpu, io: Io) -> tuple[Program, str]:
    """The first schedule that can be built between these placements, and its text.

    The heuristics of all algorithms follow, the preferred one first. Those whose weights are
    rounded must not round more than planned, so only plain sums follow for them, and float32 for
    products of int16.
    """
    refusal = ScheduleError(f"no algorithm reads {io.src.layout} and writes {io.dst.layout}")
    layout = layout_text(io.src.layout, io.dst.layout)
    plain = replace(p, types="") if p.precision.as_int16 else p
    unmeasured = (
        (template, template.heuristic(plain, cpu))
        for template in sorted(applicable(plain, cpu), key=lambda t: -t.rank(plain, cpu))
        if not template.baseline
    )
    if rounds_weights(plain.precision):
        unmeasured = ((t, replace(s, dot="")) for t, s in unmeasured if hasattr(s, "dot"))
    others = (template.text(replace(s, layout=layout)) for template, s in unmeasured)
    for problem, text in chain(zip(repeat(p), schedules), zip(repeat(plain), others)):
        try:
            return _program(problem, text, cpu, io), text
        except ScheduleError as error:
            refusal = error
    raise refusal


@functools.lru_cache(128)
def _program(p: ConvProblem, text: str, cpu: Cpu, io: Io) -> Program:
    """A network repeats layers, and writing a kernel takes longer than running it."""
    template, schedule = parse_schedule(text)
    return ObjectCache().named(template.build(p, schedule, cpu, io))


def _with_scales(
    graph: Graph, task: Task, reads: list[Placement], dst: Placement, built: Built
) -> Built:
    """The kernel with the scales that it needs if it reads or writes bytes: by table or operand."""
    places = [*zip(reads, task.reads, strict=True), (dst, task.output)]
    of = [stored_as(graph, name, where.dtype) for where, name in places]
    op = task.node.op
    if isinstance(op, Unary | Clip | ByteFunction) and reads[0].dtype is dst.dtype is U8:

        def function(x: Array) -> Array:
            return evaluate(task.node, [x], Tensor(x.shape, x.dtype))

        return replace(built, weights=table(of[0], of[1], function))
    if any(where.dtype is U8 for where, _ in places):
        return replace(built, bias=scales(of[0], of[-1], *of[1:-1]))
    return built


def _dense(graph: Graph, task: Task, op: Gemm) -> tuple[Array, Array]:
    """Weights (outputs, features) and biases (outputs,) that contain `alpha` and `beta`."""
    b = constant(graph, task, 1)
    weights = b if op.transpose_b else b.T
    if op.alpha != 1:
        weights = weights * weights.dtype.type(op.alpha)
    bias: Array = np.zeros(len(weights), weights.dtype)
    if task.node.input(2):
        bias = bias + op.beta * constant(graph, task, 2)
    return weights, bias.reshape(-1)
