"""Two operators in bands of rows give the bits that each gives alone, at any height and threads."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, Placement, layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.reference import convolve, random_operands
from fastrun.kernels.core.template import KernelTemplate, ScheduleError
from fastrun.kernels.native.compile import compile_object
from fastrun.kernels.ops import bands, pool
from fastrun.kernels.ops.pool import Pool
from fastrun.kernels.registry import applicable, templates
from tests.kernels.test_ops import pooled
from tests.support.execution import execute, relative_error
from tests.support.lanes import CPUS, TILES

HOST = Cpu.host()
SMALL = replace(HOST, l2=64 << 10, cores=2)


class Pair:
    """A convolution and what follows it, with operands and both results."""

    def __init__(
        self, p: ConvProblem, algorithm: str, layout: str, then: Pool | ConvProblem, cpu: Cpu
    ) -> None:
        self.p, self.then, self.cpu = p, then, cpu
        self.template = templates()[algorithm]
        self.schedule = replace(self.template.heuristic(p, cpu), layout=layout)
        src, between = layout_pair(layout)
        self.mid = Placement(between, p.n, p.oc, p.oh, p.ow)
        self.src = Placement(src, p.n, p.c, p.h, p.w, p.padding)
        self.first = bands.convolution(p, self.template, self.schedule, cpu)
        operands = random_operands(p, seed=1)
        self.x, self.weights, self.bias = (operands[x] for x in ("x", "weights", "bias"))
        self.more: dict[str, np.ndarray] = {}
        truth = convolve(p, self.x, self.weights, self.bias)
        if isinstance(then, Pool):
            rows, columns = windows(then, p.oh, p.ow)
            self.dst = Placement(between, p.n, p.oc, rows, columns)
            self.second = bands.pooling(then, p.oh, rows, cpu)
            self.truth = pooled(then, truth, rows, columns)
        else:
            self.dst = Placement(between, p.n, then.oc, then.oh, then.ow)
            self.follower = templates()["direct" if between != NCHW else "planar"]
            if then.stride == (1, 1):
                self.follower = templates()["pointwise"]
            self.late = replace(self.follower.heuristic(then, cpu), layout=str(between))
            self.second = bands.convolution(then, self.follower, self.late, cpu)
            self.more = random_operands(then, seed=2)
            self.truth = convolve(
                then, truth, self.more["weights"], self.more["bias"],
                self.more["add"] if then.add else None,
            )  # fmt: skip

    def fused(self, rows: int) -> Program:
        io = Io(self.src, self.dst, self.dst)
        return bands.build(self.first, self.second, rows, self.cpu, io, self.mid)

    def run(self, fused: Program, threads: int = 1) -> np.ndarray:
        nothing = np.zeros(0, np.float32)
        operands = {
            "x": self.x,
            "weights": bands.join_weights(self.weights, self.more.get("weights", nothing)),
            "bias": bands.join_biases(self.bias, self.more.get("bias", nothing)),
        }
        if isinstance(self.then, ConvProblem) and self.then.add:
            operands["add"] = self.more["add"]
        return execute(fused, operands, threads)

    def apart(self) -> np.ndarray:
        one = self.template.build(self.p, self.schedule, self.cpu, Io(self.src, self.mid, self.mid))
        between = execute(one, {"x": self.x, "weights": self.weights, "bias": self.bias})
        if isinstance(self.then, Pool):
            return execute(pool.build(self.then, self.cpu, self.mid, self.dst), {"x": between})
        io = Io(self.mid, self.dst, self.dst)
        other = self.follower.build(self.then, self.late, self.cpu, io)
        operands = {**self.more, "x": between}
        if not self.then.add:
            del operands["add"]
        return execute(other, operands)


def windows(spec: Pool, h: int, w: int) -> tuple[int, int]:
    """Outputs of a pool in ceil mode: the last window begins inside but may end outside."""
    found = []
    for axis, size in enumerate((h, w)):
        span = (spec.kernel[axis] - 1) * spec.dilation[axis] + 1
        before, after = spec.padding[axis], spec.padding[axis + 2]
        count = -(-(size + before + after - span) // spec.stride[axis]) + 1
        last = size + before
        found.append(count - ((count - 1) * spec.stride[axis] >= last))
    return found[0], found[1]


def pointwise(p: ConvProblem, oc: int, stride: int, add: bool, activation: str) -> ConvProblem:
    return ConvProblem(
        p.n, p.oc, p.oh, p.ow, oc, (1, 1), (stride, stride),
        bias=True, add=add, activation=activation,
    )  # fmt: skip


@st.composite
def producers(draw: st.DrawFn) -> tuple[ConvProblem, str, str]:
    depthwise = draw(st.booleans())
    c = draw(st.sampled_from([3, 8, 17, 32]))
    k, s = draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 2), (7, 2)]))
    h, w = draw(st.integers(4, 23)), draw(st.integers(3, 17))
    pad = draw(st.integers(k // 2, max(1, k // 2)))
    p = ConvProblem(
        draw(st.integers(1, 2)), c, h, w, c if depthwise else draw(st.sampled_from([5, 16, 33])),
        (k, k), (s, s), (pad, k // 2, k // 2, k // 2), groups=c if depthwise else 1, bias=True,
        activation=draw(st.sampled_from(["", "relu", "relu6"])),
    )  # fmt: skip
    layouts = ["NHWC", "NCHW8c"]
    if depthwise:
        return p, "depthwise", draw(st.sampled_from(layouts))
    algorithm = draw(st.sampled_from(["direct", "planar", "im2col"]))
    if algorithm == "direct":
        return p, algorithm, draw(st.sampled_from([*layouts, "NCHW>NCHW8c", "NCHW>NHWC"]))
    # A band below the first has no padding above.
    part = replace(p, padding=(0, *p.padding[1:]))
    assume(templates()[algorithm].refusal(part, HOST) is None)
    return p, algorithm, "NCHW"


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return Pool(
        draw(st.sampled_from(["max", "average"])), kernel,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        tuple(draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)),
        count_padding=draw(st.booleans()),
    )  # fmt: skip


@pytest.mark.slow
@settings(max_examples=15)
@given(producers(), pools(), st.integers(1, 9), st.sampled_from(CPUS))
def test_a_pool_behind_a_convolution(
    producer: tuple[ConvProblem, str, str], spec: Pool, rows: int, cpu: Cpu
) -> None:
    p, algorithm, layout = producer
    assume(spec.kernel[0] - spec.padding[0] <= p.oh and spec.kernel[1] - spec.padding[1] <= p.ow)
    assume(min(windows(spec, p.oh, p.ow)) > 0)
    compare(Pair(p, algorithm, layout, spec, cpu), rows)


@pytest.mark.slow
@settings(max_examples=15)
@given(
    producers(), st.sampled_from([4, 16, 21]), st.integers(1, 2), st.booleans(),
    st.sampled_from(["", "relu"]), st.integers(1, 9), st.sampled_from(CPUS),
)  # fmt: skip
def test_a_1x1_behind_a_convolution(
    producer: tuple[ConvProblem, str, str],
    oc: int, stride: int, add: bool, activation: str, rows: int, cpu: Cpu,
) -> None:  # fmt: skip
    p, algorithm, layout = producer
    compare(Pair(p, algorithm, layout, pointwise(p, oc, stride, add, activation), cpu), rows)


def compare(pair: Pair, rows: int) -> None:
    fused = pair.fused(rows)
    found = pair.run(fused)
    assert np.array_equal(found, pair.apart())
    assert relative_error(found, pair.truth) < 1e-4
    for threads in (2, 3, 50):
        assert np.array_equal(found, pair.run(fused, threads))


def test_bands_of_whole_winograd_tiles() -> None:
    """A Winograd convolution can come first if no bands have rows in common."""
    p = ConvProblem.parse("conv 1x16x24x20 32x3x3 s1 p1 bias relu")
    pair = Pair(p, "winograd", "NCHW8c", Pool("max", (2, 2), (2, 2)), HOST)
    for fused in map(pair.fused, (3, 6, 5, 12)):
        found = pair.run(fused)
        assert relative_error(found, pair.truth) < 1e-4
        assert np.array_equal(found, pair.run(fused, threads=5))


def test_rows_of_winograd_tiles_are_not_computed_twice() -> None:
    p = ConvProblem.parse("conv 1x16x24x20 32x3x3 s1 p1 bias relu")
    pair = Pair(p, "winograd", "NCHW8c", Pool("max", (3, 3), (2, 2), (1, 1, 1, 1)), HOST)
    with pytest.raises(ScheduleError, match="depend on its band"):
        pair.fused(4)


def test_a_second_convolution_has_no_padding() -> None:
    p = ConvProblem.parse("conv 1x8x12x12 8x3x3 s1 p1 bias")
    pair = Pair(p, "direct", "NHWC", pointwise(p, 8, 1, False, ""), HOST)
    padded = ConvProblem.parse("conv 1x8x12x12 8x3x3 s1 p1 bias")
    direct = templates()["direct"]
    pair.second = bands.convolution(padded, direct, direct.heuristic(padded, HOST), HOST)
    with pytest.raises(ScheduleError, match="padding"):
        pair.fused(4)


def test_one_thread_computes_no_row_twice() -> None:
    """The calls in the driver add up to the rows of the convolution."""
    p = ConvProblem.parse("conv 1x3x30x12 8x3x3 s2 p1 bias relu")
    spec = Pool("max", (3, 3), (2, 2), (1, 1, 1, 1))
    pair = Pair(p, "direct", "NCHW>NHWC", spec, SMALL)
    for rows in range(1, 9):
        cut = bands.cut_bands(pair.first, pair.second, rows)
        assert sum(band.needed - band.kept for band in cut) == p.oh
        assert sum(band.rows for band in cut) == pair.dst.h


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
def test_the_heuristic_band_fits_and_shares_out_evenly(cores: int) -> None:
    p = ConvProblem.parse("conv 1x144x56x56 144x3x3 s1 p1 g144 bias relu6")
    cpu = replace(HOST, l2=512 << 10, cores=cores)
    depthwise = templates()["depthwise"]
    first = bands.convolution(p, depthwise, replace(depthwise.heuristic(p, cpu), tile_h=2), cpu)
    late = pointwise(p, 24, 1, True, "")
    direct = templates()["direct"]
    second = bands.convolution(late, direct, direct.heuristic(late, cpu), cpu)
    mid = Placement(NCHW, 1, 144, 56, 56)
    rows = bands.rows_per_band(first, second, mid, cpu)
    assert 4 * 144 * 56 * rows <= cpu.l2 // 2
    computed, consumed = bands.busiest(first, second, rows, 1, cores, cpu)
    assert consumed == max(math.ceil(56 / cores), rows)
    assert computed <= max(2, math.ceil(56 / cores) + 1)


@pytest.mark.parametrize("target", [Cpu.avx2(), Cpu.avx512(), Cpu.neon()], ids=lambda c: c.name)
def test_builds_for_other_processors(target: Cpu) -> None:
    p = ConvProblem.parse("conv 1x3x32x32 16x7x7 s2 p3 bias relu")
    spec = Pool("max", (3, 3), (2, 2), (1, 1, 1, 1))
    assert compile_object(Pair(p, "direct", "NCHW>NCHW4c", spec, target).fused(4).ir, target)
    q = ConvProblem.parse("conv 1x32x14x14 32x3x3 s1 p1 g32 bias relu6")
    pair = Pair(q, "depthwise", "NCHW4c", pointwise(q, 16, 1, True, ""), target)
    assert compile_object(pair.fused(7).ir, target)


def test_packing_does_not_depend_on_the_rows() -> None:
    """All kernels of a part read the same packed weights."""
    p = ConvProblem.parse("conv 1x16x12x10 32x3x3 s1 p1 bias relu")
    w = random_operands(p, seed=1)["weights"]

    def packed(template: KernelTemplate, rows: int) -> np.ndarray:
        schedule = template.heuristic(p, HOST)
        part = bands.convolution(p, template, schedule, HOST)
        return part.build(rows, 0, 0, Io.of(p, schedule.layout)).pack_weights(w)

    for template in applicable(p, HOST):
        assert np.array_equal(packed(template, 3), packed(template, 12)), template.name


@pytest.mark.parametrize("cpu", [*CPUS, TILES], ids=["4 lanes", "8 lanes", "16 lanes", "tiles"])
def test_rows_of_a_higher_image_need_no_more_memory(cpu: Cpu) -> None:
    """A convolution of a few rows copies these, not the whole image they lie in."""
    images = [ConvProblem.parse(f"conv 1x32x{h}x20 32x3x3 s1 p1 bias") for h in (16, 160)]
    built = 0
    for template in applicable(images[0], cpu):
        schedule = template.heuristic(images[0], cpu)
        sizes = set()
        for p in images:
            first = bands.convolution(p, template, schedule, cpu)
            try:
                program = first.build(4, 0, 0, Io.of(p, schedule.layout))
            except ScheduleError:
                continue
            sizes.add((program.shared_bytes, program.local_bytes))
        assert len(sizes) < 2, template.name
        built += len(sizes)
    assert built
