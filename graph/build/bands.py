"""Builds one kernel for two tasks: it computes both a band of rows at a time."""

from __future__ import annotations

import functools

import numpy as np

from fastrun.graph.build.built import Built
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv, Pool
from fastrun.graph.plan.bands import convolution_of
from fastrun.graph.plan.form import Form, typed_problem
from fastrun.graph.plan.kinds import pool_spec
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.ops import bands, pool


def fuse(
    graph: Graph,
    tasks: tuple[Task, Task],
    forms: tuple[Form, Form],
    kernels: tuple[Built, Built],
    rows: int,
    cpu: Cpu,
    io: Io,
    mid: Placement,
) -> Built:
    """One kernel for two tasks, of which `kernels` are the separate kernels.

    It computes `rows` rows of the second task at a time. `io` is where it reads and writes; `mid`
    is the placement of the first result, of which the kernel keeps only a band.

    Raises:
        ScheduleError: this pair cannot be one kernel.
    """
    one, two = forms
    check(one.leaves == one.writes, "the result in between is quantised by a kernel of its own")
    problem = typed_problem(graph, tasks[0], one)
    op = tasks[1].node.op
    check(isinstance(op, Pool | Conv), "only pools and convolutions run in bands")
    then = pool_spec(op) if isinstance(op, Pool) else typed_problem(graph, tasks[1], two)
    algorithms = kernels[0].algorithm, kernels[1].algorithm
    none = np.zeros(0, np.float32)
    weights = [none if kernel.weights is None else kernel.weights for kernel in kernels]
    biases = [none if kernel.bias is None else kernel.bias for kernel in kernels]
    return Built(
        _program(problem, then, algorithms, rows, cpu, io, mid),
        f"{' + '.join(algorithms)} by {rows} rows",
        bands.join_weights(*weights),
        bands.join_biases(*biases),
    )


@functools.lru_cache(128)
def _program(
    p: ConvProblem,
    then: pool.Pool | ConvProblem,
    algorithms: tuple[str, str],
    rows: int,
    cpu: Cpu,
    io: Io,
    mid: Placement,
) -> Program:
    first = convolution_of(p, algorithms[0], cpu)
    if isinstance(then, pool.Pool):
        second = bands.pooling(then, mid.h, io.dst.h, cpu, mid.dtype)
    else:
        second = convolution_of(then, algorithms[1], cpu)
    return ObjectCache().named(bands.build(first, second, rows, cpu, io, mid))
