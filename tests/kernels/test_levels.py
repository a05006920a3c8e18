"""Blocks for each level of memory: what their formulas promise, and what they compute."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from fastrun.kernels.codegen.blocking import input_span
from fastrun.kernels.codegen.tile_choice import tiles_per_task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.levels import LEVELS
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.traffic import traffic
from fastrun.kernels.registry import applicable, templates
from tests.support.execution import reference, rms_error, run, tolerance
from tests.support.lanes import CPUS, EVERY_CPU, RUN_HERE

BLOCKED = ("direct", "im2col", "planar", "pointwise", "winograd")

# From 7x7 to 4K, filters from 1x1 to 7x7.
LAYERS = [
    "conv 1x512x7x7 512x3x3 s1 p1 bias relu",
    "conv 1x2048x7x7 512x1x1 s1 p0 bias relu",
    "conv 1x256x14x14 256x3x3 s1 p1 bias relu",
    "conv 1x1024x14x14 256x1x1 s1 p0 bias relu",
    "conv 1x512x28x28 128x1x1 s1 p0 bias relu",
    "conv 1x512x28x28 512x3x3 s1 p1 bias relu",
    "conv 1x64x56x56 64x3x3 s1 p1 bias relu",
    "conv 1x256x56x56 256x3x3 s1 p1 bias relu",
    "conv 1x64x56x56 128x3x3 s2 p1 bias relu",
    "conv 1x256x56x56 64x1x1 s1 p0 bias relu",
    "conv 1x32x112x112 32x3x3 s1 p1 bias relu",
    "conv 1x3x224x224 64x7x7 s2 p3 bias relu",
    "conv 1x64x224x224 64x3x3 s1 p1 bias relu",
    "conv 1x128x270x480 128x3x3 s2 p1 bias relu",
    "conv 1x64x1080x1920 64x3x3 s2 p1 bias relu",
    "conv 1x32x2160x3840 32x3x3 s1 p1 bias relu",
    "conv 1x64x2160x3840 3x5x5 s1 p2 bias",
]

CACHES = [(32, 512), (32, 1024), (48, 2048), (64, 256), (128, 4096)]


@pytest.mark.parametrize("text", LAYERS)
def test_no_block_exceeds_its_level(text: str) -> None:
    p = ConvProblem.parse(text)
    for (l1, l2), base in ((c, cpu) for c in CACHES for cpu in CPUS):
        cpu = replace(base, l1=l1 << 10, l2=l2 << 10)
        for template in applicable(p, cpu):
            if template.name in BLOCKED:
                schedule = template.heuristic(p, cpu)
                blocks = template.levels(p, schedule, cpu)
                assert blocks[0].level == "registers"
                assert {b.level for b in blocks} <= set(LEVELS)
                for block in blocks:
                    told = f"{template.text(schedule)} on {cpu.l1 >> 10}, {cpu.l2 >> 10} KiB"
                    assert block.share(cpu) <= 1, f"{told}: {block}"


def test_dilated_filters_leave_gaps_in_what_tasks_read() -> None:
    """One row reads three rows of the image, not all from the first to the last of them."""
    near, far = (ConvProblem.parse(f"conv 1x512x41x41 256x3x3 s1 p{d} d{d}") for d in (1, 18))
    assert input_span(far, 1, 41) == input_span(near, 1, 41) == 4 * 512 * 3 * 41
    assert input_span(near, 4, 4) == 4 * 512 * 6 * 6
    assert input_span(far, 4, 4) == 4 * 512 * 12 * 12
    assert templates()["direct"].heuristic(far, Cpu.avx512()).columns == ""


def test_cache_sizes_decide_blocks() -> None:
    """Half to four times the caches give other schedules, wherever there is something to block."""
    here = replace(Cpu.host(), l1=32 << 10, l2=1 << 20, cores=2)
    changed = dict.fromkeys(("direct", "im2col", "pointwise", "winograd"), 0)
    tried = dict(changed)
    for p in map(ConvProblem.parse, LAYERS):
        for name in changed:
            template = templates()[name]
            if template.refusal(p, here) is None:
                others = [replace(here, l1=n * here.l1 // 2, l2=n * here.l2 // 2) for n in (1, 8)]
                found = {template.heuristic(p, cpu) for cpu in (here, *others)}
                tried[name] += 1
                changed[name] += len(found) > 1
    # The maps of 7x7 and 14x14 have fewer tiles of Winograd than a block.
    assert all(changed[name] > tried[name] / 2 for name in changed), (changed, tried)


@pytest.mark.parametrize("cpu", EVERY_CPU)
@pytest.mark.parametrize(
    "text",
    [
        "conv 2x64x5x9 37x1x1 s1 p0 bias add relu",
        "conv 1x32x9x11 40x3x3 s2 p1 bias add relu",
        "conv 1x64x6x13 32x3x3 s1 p1 g2 bias relu6",
    ],
)
def test_sums_in_blocks_have_the_same_bits(text: str, cpu: Cpu) -> None:
    """Blocks of K and of columns change no result by a bit, wherever tasks are cut."""
    p = ConvProblem.parse(text)
    operands = random_operands(p, seed=3)
    truth = reference(p, operands)
    template = templates()["pointwise" if p.kernel == (1, 1) else "direct"]
    usual = template.heuristic(p, cpu)
    kinds = [{"kc": "16"}, {"kc": str(p.group_c // 2)}]
    if template.name == "direct":
        kinds += [{"columns": "1"}, {"columns": "2", "kc": "16", "rows": 2}]
    for layout in ("NHWC", "NCHW16c", "NCHW8c"):
        if p.groups > 1 and layout == "NCHW16c":
            continue
        whole = replace(usual, layout=layout, kc="")
        before = run(p, template.program(p, whole, cpu), operands)
        assert rms_error(before, truth) < tolerance(template, p, whole)
        for fields in kinds:
            for order in (False, True):
                schedule = replace(whole, oc_outer=order, **fields)
                after = run(p, template.program(p, schedule, cpu), operands, threads=3)
                # In NHWC the terms have another order.
                same = np.array_equal(before, after)
                assert same or layout == "NHWC", template.text(schedule)
                assert rms_error(after, truth) < tolerance(template, p, schedule)


@pytest.mark.parametrize("kc", ["0", "-8", "x", "24", "8"])
def test_blocks_of_k_that_cannot_be(kc: str) -> None:
    p = ConvProblem.parse("conv 1x64x8x8 16x3x3 s1 p1 bias")
    template = templates()["direct"]
    schedule = replace(template.heuristic(p, Cpu.avx512()), layout="NCHW16c", kc=kc)
    with pytest.raises(ScheduleError, match="kc="):
        template.program(p, schedule, Cpu.avx512())


def test_traffic_is_what_can_be_counted_by_hand() -> None:
    """A 1x1 layer: caches that hold all read nothing again, L1 reads the image for each panel."""
    p = ConvProblem.parse("conv 1x128x8x8 64x1x1 s1 p0")
    cpu = RUN_HERE[-1]
    template = templates()["pointwise"]
    block = min(16, cpu.lanes)
    schedule = replace(
        template.heuristic(p, cpu), layout=f"NCHW{block}c", rows=4, cols=1, tiles=16, kc=""
    )
    program = template.program(p, schedule, cpu)
    source, weights, result = 4 * 128 * 64, 4 * 128 * 64, 4 * 64 * 64
    large = traffic(p, program, replace(cpu, l1=1 << 20, l2=1 << 20, l3=1 << 20))
    assert (large.l1, large.l2, large.l3) == (0, 0, 0)
    first = traffic(p, program, replace(cpu, l1=1 << 20, l2=1 << 20, l3=1 << 20), runs=1)
    bias = 4 * 64
    assert first.l1 == first.l2 == first.l3 == source + weights + result + bias
    # L1 holds a panel and a tile's pixels, not the image: every panel reads the image again.
    panels = 64 // block
    small = traffic(p, program, replace(cpu, l1=16 << 10, l2=1 << 20, l3=1 << 20))
    assert small.l1 >= panels * source + weights
    assert small.l1 < 1.4 * (panels * source + weights + result)
    assert small.l2 == 0


def test_blocks_of_k_keep_weights_in_l1() -> None:
    p = ConvProblem.parse("conv 1x512x20x20 64x1x1 s1 p0")
    cpu = replace(RUN_HERE[-1], l1=32 << 10, l2=1 << 20, l3=32 << 20, cores=1)
    template = templates()["pointwise"]
    blocked = template.heuristic(p, cpu)
    assert blocked.kc
    one = traffic(p, template.program(p, replace(blocked, kc=""), cpu), cpu)
    two = traffic(p, template.program(p, blocked, cpu), cpu)
    assert two.l1 < 0.6 * one.l1


@pytest.mark.parametrize("cores", [1, 2, 3, 16])
def test_cores_get_equal_numbers_of_tiles(cores: int) -> None:
    """Tasks are shared out in order, the panels of a row of tiles inside; no task exceeds `fit`."""
    cpu = replace(Cpu.avx2(), cores=cores)
    for tiles, fit, panels in product((7, 14, 28, 131), (3, 4, 14, 131), (1, 2, 6)):
        size = tiles_per_task(tiles, fit, cpu, panels)
        assert 1 <= size <= min(fit, tiles)
        sizes = [min(size, tiles - at) for at in range(0, tiles, size) for _ in range(panels)]
        ends = [len(sizes) * core // cores for core in range(cores + 1)]
        busiest = max(sum(sizes[begin:end]) for begin, end in pairwise(ends))
        # With tiles one by one, a core gets at most one more than the mean.
        assert busiest <= 1.06 * (tiles * panels / cores + 1)
    assert tiles_per_task(14, 14, replace(cpu, cores=1), 2) == 14
