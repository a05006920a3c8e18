"""Channel shuffle: one channel of each group in turn."""

from __future__ import annotations

from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Index, Kernel, Module
from fastrun.kernels.codegen.tiling import cut
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check

# Pixels of a task.
PIXELS = 32


@dataclass(frozen=True)
class Shuffle:
    """Channel `j * groups + i` of the result is channel j of group i.

    The groups lie one after another in `src`, or two groups lie in `src` and `add`.
    """

    groups: int = 2


@identified
def build(
    spec: Shuffle, cpu: Cpu, src: Placement, dst: Placement, add: Placement | None = None
) -> Program:
    """Shuffle `src`, or `src` and `add`, into `dst`: any groups in NCHW, two tensors in NHWC.

    Raises:
        ScheduleError: the tensors do not fit each other or this layout is not offered.
    """
    tensors = [src, add] if add else [src]
    per_group = dst.c // spec.groups
    check(dst.c == spec.groups * per_group, f"{spec.groups} groups do not divide {dst.c} channels")
    check(sum(t.c for t in tensors) == dst.c, f"shuffling cannot make {dst.c} channels of these")
    same = {(t.layout, t.n, t.h, t.w) for t in (*tensors, dst)}
    check(len(same) == 1, "tensors of one size and layout are needed")
    module = Module(cpu)
    if dst.layout.name == "NCHW":
        check(add is None, "in NCHW all groups are in one tensor")
        _planes(module, spec.groups, src, dst)
    else:
        check(dst.layout.name == "NHWC", "shuffling takes NCHW or NHWC")
        check(add is not None and spec.groups == 2 and src.c == per_group, "two tensors are needed")
        assert add
        _pairs(module, cpu, src, add, dst)
    return module.program(Io(src, dst, add or dst))


def _planes(module: Module, groups: int, src: Placement, dst: Placement) -> None:
    """A task copies one plane."""
    per_group, lanes = src.c // groups, module.cpu.wide(src.dtype)

    @module.stage("shuffle", src.n * src.c)
    def write_shuffle(k: Kernel, task: Index) -> None:
        channel, image = task % src.c, task // src.c
        source = k.tensor("src", src).at(image, (channel % groups) * per_group + channel // groups)
        target = k.tensor("dst", dst).at(image, channel)
        with k.loop(src.h) as y:
            for run in cut(src.w, lanes):
                with run.loop(k) as x:
                    value = source.load_some(run.size, 0, 0, y, x, lanes=lanes)
                    target.store_first(value, run.size, 0, 0, y, x)


def _pairs(module: Module, cpu: Cpu, a: Placement, b: Placement, dst: Placement) -> None:
    """Vectors of both tensors, interleaved; a task does some pixels of a row."""
    lanes = cpu.wide(dst.dtype)
    tasks = -(-dst.w // PIXELS)

    @module.stage("shuffle", dst.n * dst.h * tasks)
    def write_shuffle(k: Kernel, task: Index) -> None:
        part, rest = task % tasks, task // tasks
        y, image = rest % dst.h, rest // dst.h
        first, second = (k.tensor(n, t).at(image, 0, y) for n, t in (("src", a), ("add", b)))
        target = k.tensor("dst", dst).at(image, 0, y)
        stop = k.index(part * PIXELS + PIXELS).min(dst.w)
        with k.loop(part * PIXELS, stop) as x:
            for run in cut(a.c, lanes):
                with run.loop(k) as c:
                    u, v = (
                        t.load_some(run.size, 0, 0, 0, x, c, lanes=lanes) for t in (first, second)
                    )
                    for half in (0, lanes):
                        order = [i // 2 + i % 2 * lanes for i in range(half, half + lanes)]
                        kept = min(2 * run.size - half, lanes)
                        if kept > 0:
                            place = (0, 0, 0, x, c * 2 + half)
                            target.store_first(k.shuffle(u, v, order), kept, *place)
