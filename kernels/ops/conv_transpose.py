"""Transposed convolution in one or two dimensions, as a gather.

Outputs `stride` apart, a phase of an output row, read the same taps of neighbouring inputs. A
vector holds outputs of one phase, a register tile some output channels of it. Where a tap would
read outside, the input is first copied with a halo of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Tile, least
from fastrun.kernels.codegen.epilogue import activate
from fastrun.kernels.codegen.micro_kernel import outer_product
from fastrun.kernels.codegen.strided_loops import operand, store_row
from fastrun.kernels.codegen.tile_choice import best_tile
from fastrun.kernels.codegen.tiling import Tiles, channel_panels, cover, cut, tile_count
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import READ_SLACK, Array
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import check, check_f32
from fastrun.kernels.ops.movement import pad_stages

# Phases of a row up to which each has code of its own, and taps of a row in straight code.
PHASES, UNROLL = 4, 8


@dataclass(frozen=True)
class ConvTranspose:
    """Weights are (c, oc / groups, *kernel); a tuple has one entry per spatial axis.

    Padding, all begins, then all ends, is cut off the full result; a negative end appends zeros.
    """

    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int = 1
    bias: bool = False
    activation: str = ""


@identified
def conv_transpose(spec: ConvTranspose, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Transposed convolution of `src` (n, c, *space) into `dst` (n, oc, *space).

    Raises:
        ScheduleError: there are three spatial axes, the shapes do not fit, or a tensor is not of
            f32.
    """
    check_f32("a transposed convolution", src, dst)
    io = Io(src.buffer, dst.buffer, dst.buffer)
    rank = len(spec.kernel)
    check(rank in (1, 2), f"a transposed convolution has one or two spatial axes, not {rank}")
    check(len(src.shape) == len(dst.shape) == rank + 2, f"{src.shape} has not {rank + 2} axes")
    if rank == 1:
        src, dst = (view.split(2, (1, view.shape[2])) for view in (src, dst))
    axes = [_Axis.of(spec, axis, src, dst) for axis in range(-rank, 0)]
    y, x = axes if rank == 2 else (_Axis(1, 1, 0, 1, 1, 1), axes[0])
    (n, c, _, _), oc, groups = src.shape, dst.shape[1], spec.groups
    fits = dst.shape[0] == n and c % groups == oc % groups == 0
    check(fits, f"{src.shape} cannot become {dst.shape} in {groups} groups")

    module, source, shared = Module(cpu), "src", 0
    space = (y.low + y.inputs + y.high, x.low + x.inputs + x.high)
    if space != src.shape[2:] or src.strides[3] != 1:
        padded = Strided.row_major((n, c, *space))
        pad_stages(module, "src", src, "shared", padded, (0, 0, y.low, x.low))
        src, source, shared = padded, "shared", F32.bytes(padded.size + READ_SLACK)

    group_c, group_oc, window = c // groups, oc // groups, y.kernel * x.kernel
    longest = -(-x.outputs // x.stride)
    lanes = cpu.lanes_for(longest)
    _, height, cols = best_tile(1, group_oc, -(-longest // lanes), cpu)
    channels = cover(group_oc, height)
    tasks = n * groups * tile_count(channels) * y.outputs

    @module.stage("conv_transpose", tasks)
    def write_conv_transpose(k: Kernel, task: Index) -> None:
        row, rest = task % y.outputs, task // y.outputs
        number, rest = rest % tile_count(channels), rest // tile_count(channels)
        group, image = rest % groups, rest // groups
        first, down, top = y.taps(row)
        inputs = operand(k, source, src).at(image, group * group_c, top + y.low, x.low)
        outputs = operand(k, "dst", dst).at(image, group * group_oc, row)
        weights = k.argument("weights", window * group_oc, group_oc, 1)
        weights = weights.at(group * group_c, first * x.kernel)
        bias = k.argument("bias", 1).at(group * group_oc)
        taps = _Taps(k, spec, y, x, lanes, inputs, outputs, weights, bias, down, group_c)
        fewest, more = divmod(x.outputs, x.stride)
        # Outputs a stride apart are a phase of the row; the first ones may have one more output.
        phases = [(0, more, fewest + 1), (more, x.stride, fewest)]
        for run in channels:
            with run.when(k, number) as channel:
                for begin, end, count in [p for p in phases if p[0] < p[1] and p[2]]:
                    panels = channel_panels(count, lanes, cols, split_tail=True)
                    with k.each(begin, end, x.stride <= PHASES) as starts:
                        for start in starts:
                            taps.phase(run.size, channel, start, panels, count % lanes)

    return module.program(io, partial(_pack, c=c), shared)


def _pack(weights: Array, c: int) -> Array:
    """(c, oc / groups, *kernel) -> (c, *kernel, oc / groups), flat."""
    return np.moveaxis(weights.reshape(c, weights.shape[1], -1), 1, 2).reshape(-1)


@dataclass(frozen=True)
class _Taps:
    """An output row of one group: how its register tiles are computed."""

    k: Kernel
    spec: ConvTranspose
    y: _Axis
    x: _Axis
    lanes: int
    inputs: Buffer
    outputs: Buffer
    weights: Buffer
    bias: Buffer
    down: Int  # taps of the row above each other
    channels: int

    def phase(
        self, height: int, channel: Int, start: Int, panels: Sequence[Tiles], tail: int
    ) -> None:
        """The outputs of `height` channels that are a stride apart, from `start` on.

        `panels` are their vectors; the last has `tail` outputs, or is full.
        """
        k, lanes, spec, x = self.k, self.lanes, self.spec, self.x
        column, across, left = x.taps(start)
        filters = self.weights.at(0, column, channel)
        for panel in panels:
            with panel.loop(k) as vector:
                acc = k.tile(height, panel.size, lanes)
                for i, j in acc:
                    zero = k.const(0.0, lanes)
                    acc[i, j] = self.bias.splat(channel + i, lanes=lanes) if spec.bias else zero
                self._add_products(
                    acc, self.inputs.at(0, 0, 0, vector * lanes + left), filters, across
                )
                target = self.outputs.at(0, channel, 0, vector * (lanes * x.stride) + start)
                for i, j in acc:
                    last = panel is panels[-1] and j == panel.size - 1
                    at = target.at(0, i, 0, j * lanes * x.stride)
                    value = activate(acc[i, j], spec.activation)
                    step = x.stride * target.strides[3]
                    store_row(at, step, (last and tail) or lanes, value)

    def _add_products(self, acc: Tile, pixels: Buffer, filters: Buffer, across: Int) -> None:
        """Add all taps of all input channels; `across` taps lie side by side."""
        k, lanes, x, y = self.k, self.lanes, self.x, self.y
        with k.loop(0, k.index(self.down)) as ty, k.loop(self.channels) as ic:
            # A count that is known only at run time has no straight code.
            pieces: Sequence[Tiles | None]
            pieces = cut(across, UNROLL) if isinstance(across, int) else [None]
            for piece in pieces:
                with piece.unrolled(k) if piece else k.each(0, across, straight=False) as taps:
                    for tx in taps:
                        a = filters.at(ic, ty * (y.spacing * x.kernel) + tx * x.spacing)
                        b = pixels.at(0, ic, ty * -y.reach, tx * -x.reach)
                        outer_product(
                            acc,
                            (a.splat(0, 0, i, lanes=lanes) for i in range(acc.rows)),
                            (b.load(0, 0, 0, j * lanes, lanes=lanes) for j in range(acc.cols)),
                        )


@dataclass(frozen=True)
class _Axis:
    """One spatial axis; `begin` elements of the full result are cut off before the first output."""

    kernel: int
    stride: int
    begin: int
    dilation: int
    inputs: int
    outputs: int

    @classmethod
    def of(cls, spec: ConvTranspose, axis: int, src: Strided, dst: Strided) -> _Axis:
        """Axis `axis`, counted from the end."""
        begins = spec.padding[: len(spec.kernel)]
        check(begins[axis] >= 0, "a transposed convolution cannot be padded before its result")
        kernel, stride, begin, dilation = (
            values[axis] for values in (spec.kernel, spec.stride, begins, spec.dilation)
        )
        return cls(kernel, stride, begin, dilation, src.shape[axis], dst.shape[axis])

    @property
    def spacing(self) -> int:
        """Taps from one that an output reads to the next."""
        return self.stride // math.gcd(self.stride, self.dilation)

    @property
    def reach(self) -> int:
        """Inputs between those that two such taps read."""
        return self.dilation // math.gcd(self.stride, self.dilation)

    def taps(self, output: Int) -> tuple[Int, Int, Int]:
        """The first tap that an output reads, how many there are, and which input the first reads.

        They solve output + begin = input * stride + tap * dilation.
        """
        place, common, spacing = output + self.begin, self.stride // self.spacing, self.spacing
        first = place // common % spacing * pow(self.reach, -1, spacing) % spacing
        count = (self.kernel - first + (spacing - 1)) // spacing
        if common > 1:
            # Outputs between multiples of the common divisor read no tap.
            count = least(count, (1 - least(place % common, 1)) * self.kernel)
        # The number divided must not be negative.
        before = -(-(spacing - 1) * self.dilation // self.stride)
        start = (place - first * self.dilation + before * self.stride) // self.stride - before
        return first, count, start

    @property
    def low(self) -> int:
        """Zeros needed before the first input."""
        return max(0, -min(self._read()))

    @property
    def high(self) -> int:
        """Zeros needed after the last input."""
        return max(0, max(self._read()) - (self.inputs - 1))

    def _read(self) -> list[int]:
        """Inputs that are read, with the first and the last; 0 is among them."""
        found, n = [0], self.outputs
        # An output reads the inputs behind those of the output a stride before it.
        for output in {*range(n)[: self.stride], *range(n)[-self.stride :]}:
            _, count, start = self.taps(output)
            assert isinstance(count, int)
            assert isinstance(start, int)
            found += [start, start - (count - 1) * self.reach] if count else []
        return found
