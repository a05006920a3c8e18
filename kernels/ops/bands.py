"""Two operators as one kernel: the second reads what the first computes while it is in the cache.

The result is computed in bands of a few rows. For each band, the first operator computes the rows
that the band needs into the thread's workspace, and the second computes the band from them. Both
are kernels of their own generators, built for these numbers of rows; a third function calls them in
turn and moves their operands. Rows that the next band needs as well are kept as long as one thread
computes the bands in order. At the start of a task they are computed again.

Between the two lie elements of any type. Each operator has its own weights and scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, least, outcomes
from fastrun.kernels.codegen.tiling import Tiles, consecutive, cut
from fastrun.kernels.core.cpu import Cpu, whole_lines
from fastrun.kernels.core.dtype import F32, DType
from fastrun.kernels.core.identity import key_of
from fastrun.kernels.core.layout import READ_SLACK, Array, Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program, pack_bias
from fastrun.kernels.core.quantised import operand_size
from fastrun.kernels.core.template import KernelTemplate, check
from fastrun.kernels.ops import pool

Pack = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Part:
    """One of the two operators: `rows` rows, each computed from a window of its input's rows.

    Windows are `span` rows high. The first begins `top` rows above the input, each other one
    `stride` rows further down.

    `build(rows, above, below, io)` makes a kernel for some rows of one image, whose operands begin
    with the first of these rows. Of the windows' rows, `above` and `below` many are outside the
    image; `io.src` has room for them. The kernel packs a flat array of weights.
    """

    rows: int
    span: int
    stride: int
    top: int
    build: Callable[[int, int, int, Io], Program]
    weights: int = 0  # before they are packed
    biases: int = 0  # floats, as the operator alone reads them
    per_row: int = 0  # floats of packed weights for each row
    grain: int = 1  # rows that are best computed together
    alike: bool = True  # the bits of a row do not depend on which others are computed with it

    def window(self, rows: int) -> int:
        """Rows of input for `rows` neighbouring rows."""
        return (rows - 1) * self.stride + self.span


def convolution(p: ConvProblem, template: KernelTemplate, schedule: object, cpu: Cpu) -> Part:
    """A convolution. As the second operator it must have no padding above and below."""
    top, left, _, right = p.padding

    def build(rows: int, above: int, below: int, io: Io) -> Program:
        check(above == below == 0, "a band has no rows of zeros for the padding")
        part = replace(p, n=1, h=whole.window(rows), padding=(0, left, 0, right))
        program = template.build(part, schedule, cpu, io)
        pack = program.pack_weights
        return replace(program, pack_weights=lambda w: pack(given(w).reshape(p.weight_shape)))

    def given(weights: NDArray[Any]) -> NDArray[Any]:
        """The weights as the kernel packs them: integers have passed as float32."""
        return weights.astype(np.int8) if p.precision.integer else weights

    whole = Part(
        rows=p.oh,
        span=(p.kernel[0] - 1) * p.dilation[0] + 1,
        stride=p.stride[0],
        top=top,
        build=build,
        weights=math.prod(p.weight_shape),
        biases=operand_size(p) if p.precision.integer else p.oc,
        grain=template.grain(p, schedule),
        alike=template.rows_alike,
    )
    return whole


def pooling(spec: pool.Pool, h: int, rows: int, cpu: Cpu, dtype: DType = F32) -> Part:
    """A pooling of `h` rows of a type into `rows` rows, as the second operator."""
    _, left, bottom, right = spec.padding
    shares = pool.shares(pool.zones(spec, 0, h, rows), dtype)

    def build(count: int, above: int, below: int, io: Io) -> Program:
        part = replace(spec, padding=(above, left, min(below, bottom), right))
        inside = whole.window(count) - above - below
        program = pool.build(part, cpu, _rows(io.src, inside, above), _rows(io.dst, count))
        return replace(program, pack_weights=lambda w: shares)

    whole = Part(
        rows=rows,
        span=(spec.kernel[0] - 1) * spec.dilation[0] + 1,
        stride=spec.stride[0],
        top=spec.padding[0],
        build=build,
        per_row=pool.per_row(dtype),
    )
    return whole


def _rows(where: Placement, h: int, first: int = 0) -> Placement:
    """`h` rows of one image, from row `first` on, in the same buffer."""
    top, left, bottom, right = where.halo
    halo = (top + first, left, bottom + where.h - h - first, right)
    return replace(where, n=1, h=h, halo=halo)


@dataclass(frozen=True)
class Band:
    """`rows` rows of the result, and the rows of the first operator that they need.

    Of the rows of their windows, some are `above` and `below` the image and `needed` are inside.
    The band before needs `kept` of these as well.
    """

    rows: int
    above: int
    below: int
    needed: int
    kept: int


def cut_bands(first: Part, second: Part, rows: int) -> list[Band]:
    """All bands of an image, of `rows` rows each but the last."""
    found, done = list[Band](), 0
    for run in cut(second.rows, rows):
        for start in range(run.start, run.end, run.size):
            begin = start * second.stride - second.top
            end = begin + second.window(run.size)
            low, high = max(begin, 0), min(end, first.rows)
            found.append(Band(run.size, low - begin, end - high, high - low, max(0, done - low)))
            done = high
    return found


def bands_per_task(bands: int, overlap: bool, cpu: Cpu) -> int:
    """Bands of a task. If tasks begin with rows computed again, there are two tasks per core."""
    return -(-bands // (2 * cpu.cores)) if overlap else 1


def rows_per_band(first: Part, second: Part, mid: Placement, cpu: Cpu) -> int:
    """The height at which the busiest core has least to do; then one whose band fits half of L2.

    Of equally good heights the largest one wins. It is 0 if no band fits L2.
    """

    def size(rows: int) -> int:
        return mid.dtype.bytes(mid.c * mid.w * second.window(rows))

    def key(rows: int) -> tuple[int, bool, int]:
        work, _ = busiest(first, second, rows, mid.n, cpu.cores, cpu)
        return work, size(rows) > cpu.l2 // 2, -rows

    fit = [rows for rows in range(1, second.rows + 1) if size(rows) <= cpu.l2]
    return min(fit, key=key, default=0)


def busiest(
    first: Part, second: Part, rows: int, n: int, threads: int, cpu: Cpu
) -> tuple[int, int]:
    """Rows that the two operators compute on the thread that has most to do.

    Rows of the first operator are counted in whole grains.
    """
    again = max(0, second.span - second.stride)
    heights = [run.size for run in cut(second.rows, rows) for _ in range(run.count)]
    work = [(whole_grains(first, height * second.stride), height) for height in heights]
    per_task = bands_per_task(len(work), again > 0, cpu)
    tasks = [
        (again + sum(a for a, _ in bands), sum(b for _, b in bands))
        for bands in (work[i : i + per_task] for i in range(0, len(work), per_task))
    ] * n
    if threads == 1:
        tasks = [(a - again, b) for a, b in tasks]
    shares = (
        tasks[len(tasks) * t // threads : len(tasks) * (t + 1) // threads] for t in range(threads)
    )
    return max((sum(a for a, _ in share), sum(b for _, b in share)) for share in shares)


def whole_grains(part: Part, rows: int) -> int:
    """`rows`, rounded up to whole grains, which take the same time."""
    return -(-rows // part.grain) * part.grain


def join_weights(*weights: NDArray[Any]) -> NDArray[Any]:
    """The weights of both operators as the kernel packs them: of one type, or as float32."""
    return np.concatenate([w.reshape(-1) for w in weights])


def join_biases(first: Array, second: Array) -> Array:
    """The biases of both operators, or what they read in this place; for `pack_bias`."""
    return np.concatenate([pack_bias(first), second])


def build(first: Part, second: Part, rows: int, cpu: Cpu, io: Io, mid: Placement) -> Program:
    """The kernel that makes `rows` rows of the result at a time.

    `mid` is the placement of the first operator's result, of which only a band exists at a time.
    One of the operators may read `io.add`. Weights and biases are joined by `join_weights` and
    `join_biases`.

    Raises:
        ScheduleError: one of the kernels cannot be built, or rows must be computed twice and the
            first operator does not give them the same bits.
    """
    check(mid.h == first.rows, "the second operator does not read what the first writes")
    bands = cut_bands(first, second, rows)
    kept = max(band.kept for band in bands)
    check(kept == 0 or first.alike, "the bits of a row would depend on its band")
    height = max(band.above + band.needed + band.below for band in bands)
    buffer = Placement(mid.layout, 1, mid.c, height, mid.w, zero=mid.zero)

    module = Module(cpu)
    reads, writes = Io(io.src, buffer, io.add), Io(buffer, io.dst, io.add)
    heights = sorted({x for b in bands for x in (b.needed, b.needed - b.kept) if x})
    kinds = sorted({(b.rows, b.above, b.below) for b in bands})
    firsts = [first.build(h, 0, 0, reads) for h in heights]
    seconds = [second.build(*kind, writes) for kind in kinds]
    of_seconds, second_packs, middle = _packings(seconds, second.weights, 0)
    of_firsts, first_packs, end = _packings(firsts, first.weights, middle)
    own_weights = dict(zip([*heights, *kinds], [*of_firsts, *of_seconds], strict=True))
    programs = [*firsts, *seconds]
    stages = {
        kind: module.include(program, f"part{number}_")
        for number, (kind, program) in enumerate(zip([*heights, *kinds], programs, strict=True), 1)
    }

    # In the thread's workspace: the band, then the workspaces of either kernel.
    shared = whole_lines(_floats(buffer.dtype.bytes(buffer.size + READ_SLACK)))
    local = shared + whole_lines(F32.count(max(x.shared_bytes for x in programs)))
    biases = pack_bias(np.zeros(first.biases, np.float32)).size
    per_task = bands_per_task(len(bands), kept > 0, cpu)
    tasks = -(-len(bands) // per_task)

    @module.stage("bands", mid.n * tasks)
    def write_bands(k: Kernel, task: Index) -> None:
        start, image = task % tasks * per_task, task // tasks
        band_buffer = k.argument("local", buffer.y_stride, dtype=buffer.dtype)
        workspaces = {
            "shared": k.argument("local", offset=shared),
            "local": k.argument("local", offset=local),
        }
        with k.loop(start, least(start + per_task, len(bands))) as turn:
            for alike in _alike(bands):
                with alike.when(k, turn) as number:
                    band = bands[alike.start]
                    row = number * rows
                    low = row * second.stride + (band.above - second.top)
                    before = (number - start) + (task - k.begin)
                    begins = before < 1 if band.kept else True
                    for is_first in outcomes(begins):
                        with k.when(begins, is_first):
                            old = 0 if is_first else band.kept
                            if old:
                                _keep(k, buffer, rows * second.stride, band.above, old)
                            new = band.needed - old
                            for stage in stages[new] if new else ():
                                top = (low + old) * first.stride - first.top
                                k.call(
                                    stage,
                                    src=_row(k, "src", io.src, image, top),
                                    weights=k.argument("weights", offset=own_weights[new]),
                                    add=_row(k, "add", io.add, image, low + old),
                                    dst=band_buffer.at(band.above + old),
                                    **workspaces,
                                )
                    kind = band.rows, band.above, band.below
                    packed = k.argument("weights", second.per_row, offset=own_weights[kind])
                    for stage in stages[kind]:
                        k.call(
                            stage,
                            src=band_buffer,
                            weights=packed.at(row),
                            bias=k.argument("bias", offset=biases),
                            add=_row(k, "add", io.add, image, row),
                            dst=_row(k, "dst", io.dst, image, row),
                            **workspaces,
                        )

    def pack(weights: NDArray[Any]) -> Array:
        flat = weights.reshape(-1)
        found = np.zeros(end, np.float32)
        for own, packs in (
            (flat[first.weights :], second_packs),
            (flat[: first.weights], first_packs),
        ):
            for start, pack_own in packs:
                bytes_ = np.ascontiguousarray(pack_own(own)).reshape(-1).view(np.uint8)
                found[start:].view(np.uint8)[: bytes_.size] = bytes_
        return found

    own = max(x.local_bytes for x in programs)
    parts = [(x.rows, x.span, x.stride, x.top, x.weights, x.biases, x.per_row)
             for x in (first, second)]  # fmt: skip
    inner = [x.key for x in programs]
    key = key_of(build, parts, inner, rows, cpu, io, mid) if all(inner) else ""
    return replace(module.program(io, pack, local_bytes=F32.bytes(local) + own), key=key)


def _packings(
    programs: Sequence[Program], size: int, start: int
) -> tuple[list[int], list[tuple[int, Pack]], int]:
    """Where the packed weights of each kernel begin, how to pack what is there, and where all end.

    All in floats, from `start` on. Kernels of other heights may read other arrangements of the same
    `size` weights; those that read the same one share it.
    """
    places, packs = dict[bytes, int](), list[tuple[int, Pack]]()
    signs = np.random.default_rng(size).integers(0, 2, size, np.int8)
    probe = (2 * signs - 1).astype(np.float32)  # numbers that all types have, in no order
    begins = list[int]()
    for program in programs:
        packed = program.pack_weights(probe).tobytes()
        if packed not in places:
            places[packed] = start
            packs.append((start, program.pack_weights))
            start += whole_lines(_floats(len(packed)) + READ_SLACK)
        begins.append(places[packed])
    return begins, packs, start


def _floats(size: int) -> int:
    """Float32 numbers that take at least `size` bytes."""
    return -(-size // F32.bytes())


def _row(k: Kernel, name: str, where: Placement, image: Int, row: Int) -> Buffer:
    """An operand from a row of an image on."""
    return k.argument(name, where.n_stride, where.y_stride, dtype=where.dtype).at(image, row)


def _alike(bands: list[Band]) -> list[Tiles]:
    """Runs of equal bands."""
    return consecutive(*((1, len(list(members))) for _, members in groupby(bands)))


def _keep(k: Kernel, buffer: Placement, shift: int, at: int, count: int) -> None:
    """Move `count` rows from `shift` rows below row `at` to row `at`."""
    k.declare("declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)")
    with k.loop(buffer.blocks) as block:
        strides = buffer.block_stride, buffer.y_stride
        plane = k.argument("local", *strides, dtype=buffer.dtype).at(block, at)
        align = f"ptr align {buffer.dtype.bytes()}"
        ends = f"{align} {plane.base}, {align} {plane.at(0, shift).base}"
        size = buffer.dtype.bytes(count * buffer.y_stride)
        k.emit_void(f"call void @llvm.memmove.p0.p0.i64({ends}, i64 {size}, i1 false)")
