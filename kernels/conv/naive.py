"""The definition of convolution as seven scalar loops: the baseline and the shortest algorithm."""

from __future__ import annotations

from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Index, Kernel, Module
from fastrun.kernels.codegen.dot import multiply_add
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.half import packed_flat, unscale, weights_at
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import KernelTemplate, check_layouts


@dataclass(frozen=True)
class Schedule:
    layout: str = "NCHW"


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    return None


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    return Schedule()


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_layouts(io, "NCHW")
    types, module = p.precision, Module(cpu)

    @module.stage("naive", tasks=p.n * p.oc)
    def write_naive(k: Kernel, task: Index) -> None:
        image, oc = task // p.oc, task % p.oc
        first = (oc // p.group_oc) * p.group_c  # first input channel of the filter's group
        src = k.tensor("src", io.src, y=-p.padding[0], x=-p.padding[1])
        dst, add = k.tensor("dst", io.dst), k.tensor("add", io.add)
        strides = p.depth, p.kernel[0] * p.kernel[1], p.kernel[1], 1
        weights, scales = weights_at(k, types.weights, p.oc, *strides)
        acc = k.tile(1, 1, lanes=1, dtype=types.sums)
        with k.loop(p.oh) as y, k.loop(p.ow) as x:
            bias = k.argument("bias", 1, dtype=types.sums).load(oc, lanes=1)
            acc[0, 0] = k.const(0.0, lanes=1) if scales else bias
            window = src.at(image, first, y * p.stride[0], x * p.stride[1])
            with k.loop(p.group_c) as c, k.loop(p.kernel[0]) as ky, k.loop(p.kernel[1]) as kx:
                value = window.load(0, c, ky * p.dilation[0], kx * p.dilation[1], lanes=1)
                weight = weights.load(oc, c, ky, kx, lanes=1)
                acc[0, 0] = multiply_add(acc[0, 0], value, weight)
            residual = add.load(image, oc, y, x, lanes=1) if p.add else None
            total = unscale(acc[0, 0], scales.load(oc, lanes=1), bias) if scales else acc[0, 0]
            dst.store(finish(p, total, residual, oc), image, oc, y, x)

    return module.program(io, pack_weights=lambda w: packed_flat(w, types.weights))


template = KernelTemplate(
    "naive", Schedule, why_not, heuristic, build, baseline=True,
    takes=lambda types, cpu: not types.signs and not types.as_int16,
)  # fmt: skip
