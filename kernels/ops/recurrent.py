"""Recurrent layers: LSTM, GRU and plain ones, all steps in one kernel.

The products of the input are computed before, for all steps at once. A step then multiplies the
hidden state by the recurrence weights, which are packed so that all gates of a vector of hidden
values are summed side by side; the gates are applied while these sums are in registers. The hidden
state of a step is read where the step before has left it, in the result. A task does all steps of
one direction for some images of the batch. Each step reads all recurrence weights, which may be
stored in 16 bits.

Where that gives a core nothing to do and the weights are large, every step is a stage instead, and
cores share its hidden values: each then reads its own part of the weights, which its cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Vec, fma
from fastrun.kernels.codegen.elementary import sigmoid, tanh
from fastrun.kernels.codegen.half import encoded, joined, unscale, weights_at
from fastrun.kernels.codegen.strided_loops import operand
from fastrun.kernels.codegen.sums import add_products
from fastrun.kernels.codegen.tiling import Tiles, channel_panels, cover, tile_count
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, DType
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import READ_SLACK, Array
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check, check_f32

# Products in straight code, and vectors that are summed at the same time, if there are few images.
UNROLL, SUMS = 4, 8

# Steps up to which each may be a stage.
STAGES = 1024

# The gates of each kind of cell. A GRU has two forms: `gru` resets the product of the hidden state,
# `gru_before` the hidden state before that product.
GATES = {"lstm": 4, "gru": 3, "gru_before": 3, "tanh": 1, "relu": 1}
_DIRECTIONS = ((False,), (True,), (False, True))


@dataclass(frozen=True)
class Recurrent:
    """All steps of a recurrent layer whose input is multiplied already.

    Inputs are the products of the input with all biases but the next, (steps, batch, directions *
    gates * hidden); the recurrence weights, (directions, gates * hidden, hidden); the bias of the
    product that a `gru` resets, (directions, hidden); and the states before the first step,
    (states, directions, batch, hidden). The last two may be absent: zeros. Gates are in the order
    of ONNX: input, output, forget, cell; update, reset, hidden.

    `cell` is one of `GATES`; `backwards` says for each direction whether it begins with the last
    step. The result is the hidden state after each step, (steps, directions, batch, hidden). With
    `keeps_cell` an LSTM's last cell state comes behind it, as one more step.
    """

    cell: str
    backwards: tuple[bool, ...] = (False,)
    keeps_cell: bool = False

    @property
    def gates(self) -> int:
        """The gates of the cell."""
        return GATES[self.cell]

    @property
    def states(self) -> int:
        """The tensors that go from step to step: the hidden state, and an LSTM's cell state."""
        return 2 if self.cell == "lstm" else 1


@identified
def recurrent(
    spec: Recurrent, cpu: Cpu, src: Strided, dst: Strided, initial: Strided | None = None,
    dtype: DType = F32,
) -> Program:  # fmt: skip
    """Run all steps; `initial`, if given, is the argument `add`, `dtype` the weights' type.

    Raises:
        ScheduleError: the shapes do not fit, the last axes are not contiguous, or a tensor is not
            of f32.
    """
    check_f32("a recurrent layer", src, dst)
    check(spec.cell in GATES, f"unknown cell {spec.cell!r}: use one of {[*GATES]}")
    check(spec.backwards in _DIRECTIONS, f"there are no directions {spec.backwards}")
    steps, batch, _ = src.shape
    ways, hidden = len(spec.backwards), dst.shape[-1]
    fits = (
        src.shape[-1] == ways * spec.gates * hidden
        and dst.shape == (steps + spec.keeps_cell, ways, batch, hidden)
        and (initial is None or initial.shape == (spec.states, ways, batch, hidden))
    )
    check(fits, f"{spec} cannot turn {src.shape} into {dst.shape}")
    near = all(x.strides[-1] == 1 for x in (src, dst) + ((initial,) if initial else ()))
    check(near, "a recurrent layer reads and writes contiguous rows")

    lanes = cpu.lanes_for(hidden)
    images = cover(batch, max(1, (cpu.registers - 2) // (spec.gates + 1)))
    # Few sums at a time would wait for one another.
    wide = max(1, SUMS // (spec.gates * images[0].size))
    panels = channel_panels(hidden, lanes, wide, split_tail=True)
    layer = _Layer(spec, lanes, hidden, panels, dtype)
    width, stride = layer.width, dst.strides[-2]
    large = dtype.bytes(layer.weights) > cpu.l2 // 4 and tile_count(panels) > 1
    idle = ways * tile_count(images) == 1 < cpu.cores
    if large and idle and steps <= STAGES and spec.cell != "gru_before":
        return _step_by_step(layer, cpu, src, dst, initial)
    module = Module(cpu)

    @module.stage("recur", ways * tile_count(images))
    def write_recur(k: Kernel, task: Index) -> None:
        number, way = task % tile_count(images), task // tile_count(images)
        products, target = operand(k, "src", src), operand(k, "dst", dst)
        weights, scales = weights_at(k, dtype, ways * layer.sums, 1)
        weights = weights.at(way * layer.weights)
        scales = scales.strided(layer.width, 1).at(way * spec.gates) if scales else None
        bias = k.argument("bias", 1).at(way * hidden)
        for run in images:
            rows = run.size
            with run.when(k, number) as image:
                # The cell state; for a GRU the update gate, and the hidden state that was reset.
                kept = k.argument("local", width, 1)
                first_state = k.argument("local", stride, 1, offset=2 * rows * width)
                for state, where in enumerate((first_state, kept)[: spec.states]):
                    for i in range(rows):
                        for at, _ in layer.vectors(k):
                            value = k.const(0.0, lanes)
                            if initial:
                                there = operand(k, "add", initial).at(state, way, image + i, at)
                                value = there.strided(1).load(0, lanes=lanes)
                            where.store(value, i, at)
                with k.loop(steps) as step:
                    now, last = (_time(spec.backwards, way, x, steps) for x in (step, step - 1))
                    before = target.at(last, way, image).strided(stride, 1)
                    given = products.at(now, image, way * spec.gates * hidden)
                    layer.step(
                        k,
                        given.strided(src.strides[1], 1),
                        weights,
                        scales,
                        bias,
                        k.either(step < 1, first_state, before),
                        kept,
                        target.at(now, way, image).strided(stride, 1),
                        rows,
                    )
                if spec.keeps_cell:
                    end = target.at(steps, way, image).strided(stride, 1)
                    for i in range(rows):
                        for at, count in layer.vectors(k):
                            end.store_first(kept.load(i, at, lanes=lanes), count, i, at)

    local = images[0].size * (2 * width + stride) + READ_SLACK
    io = Io(src.buffer, dst.buffer, initial.buffer if initial else dst.buffer)
    return module.program(io, layer.packed, local_bytes=F32.bytes(local))


def _step_by_step(
    layer: _Layer, cpu: Cpu, src: Strided, dst: Strided, initial: Strided | None
) -> Program:
    """The kernel of one direction whose every step is a stage, with a task for each panel.

    Each panel counts its steps, since stages are told nothing but their tasks.
    """
    spec, (steps, batch, _), lanes = layer.spec, src.shape, layer.lanes
    width, stride, module = layer.width, dst.strides[-2], Module(cpu)
    panels = tile_count(layer.panels)

    def states(k: Kernel) -> tuple[Buffer, Buffer, Buffer]:
        """The cell state, the hidden state before the first step, and the panels' counters."""
        kept = k.argument("shared", width, 1)
        first = k.argument("shared", stride, 1, offset=batch * width)
        return kept, first, k.argument("shared", 1, offset=batch * (width + stride))

    @module.stage("recur_begin", 1)
    def write_begin(k: Kernel, task: Index) -> None:
        kept, first_state, counters = states(k)
        for state, where in enumerate((first_state, kept)[: spec.states]):
            for i in range(batch):
                for at, _ in layer.vectors(k):
                    value = k.const(0.0, lanes)
                    if initial:
                        there = operand(k, "add", initial).at(state, 0, i, at)
                        value = there.strided(1).load(0, lanes=lanes)
                    where.store(value, i, at)
        with k.loop(panels) as panel:
            counters.store(k.const(0.0, 1), panel)  # whose bits are those of the integer

    @module.stage("recur", panels)
    def write_recur(k: Kernel, panel: Index) -> None:
        kept, first_state, counters = states(k)
        step = counters.index(panel)
        counters.store_index(step + 1, panel)
        products, target = operand(k, "src", src), operand(k, "dst", dst)
        now, last = (_time(spec.backwards, 0, x, steps) for x in (step, step - 1))
        weights, scales = weights_at(k, layer.dtype, layer.sums, 1)
        layer.step(
            k,
            products.at(now).strided(src.strides[1], 1),
            weights,
            scales.strided(width, 1) if scales else None,
            k.argument("bias", 1),
            k.either(step < 1, first_state, target.at(last).strided(stride, 1)),
            kept,
            target.at(now).strided(stride, 1),
            batch,
            panel,
        )

    if spec.keeps_cell:

        @module.stage("recur_end", 1)
        def write_end(k: Kernel, task: Index) -> None:
            kept, end = states(k)[0], operand(k, "dst", dst).at(steps).strided(stride, 1)
            for i in range(batch):
                for at, count in layer.vectors(k):
                    end.store_first(kept.load(i, at, lanes=lanes), count, i, at)

    room = batch * (width + stride) + panels + READ_SLACK
    io = Io(src.buffer, dst.buffer, initial.buffer if initial else dst.buffer)
    program = module.program(io, layer.packed, shared_bytes=F32.bytes(room))
    begin, step, *end = program.stages
    return replace(program, stages=(begin, *[step] * steps, *end))


def _time(backwards: tuple[bool, ...], way: Int, step: Index, steps: int) -> Int:
    """The place of a step in the sequence; a second direction runs backwards."""
    if len(backwards) == 1:
        return (steps - 1) - step if backwards[0] else step
    return way * (step * -2 + (steps - 1)) + step


@dataclass(frozen=True)
class _Layer:
    """The cell, and how its hidden values are cut into panels of vectors."""

    spec: Recurrent
    lanes: int
    hidden: int
    panels: list[Tiles]
    dtype: DType

    @property
    def width(self) -> int:
        """Hidden values in whole vectors."""
        return self.panels[-1].end * self.lanes

    @property
    def sums(self) -> int:
        """Sums of a direction, in whole vectors."""
        return self.spec.gates * self.width

    @property
    def weights(self) -> int:
        """Packed weights of a direction."""
        return self.sums * self.hidden

    @property
    def passes(self) -> list[range]:
        """The gates that are summed side by side, in each pass over the hidden values."""
        every = range(self.spec.gates)
        return [every[:2], every[2:]] if self.spec.cell == "gru_before" else [every]

    def packed(self, weights: Array) -> NDArray[Any]:
        """(direction, gate * hidden, hidden) -> (direction, pass, panel, k, vector, gate, lane).

        Scales of f16 lie in front, those of (direction, gate, hidden value).
        """
        ways, gates = len(weights), self.spec.gates
        filled = np.zeros((ways, gates, self.width, self.hidden), np.float32)
        filled[:, :, : self.hidden] = weights.reshape(ways, gates, self.hidden, self.hidden)
        elements, scales = encoded(filled.reshape(-1, self.hidden), self.dtype)
        vectors = elements.reshape(ways, gates, -1, self.lanes, self.hidden)
        found = []
        for way in vectors:
            for some in self.passes:
                for panel in self.panels:
                    part = way[some.start : some.stop, panel.start : panel.end]
                    part = part.reshape(len(some), -1, panel.size, self.lanes, self.hidden)
                    found.append(part.transpose(1, 4, 2, 0, 3).reshape(-1))
        return joined(scales, np.concatenate(found))

    def vectors(self, k: Kernel) -> Iterator[tuple[Int, int]]:
        """The first hidden value of each vector, and its lanes that are hidden values."""
        for panel in self.panels:
            with panel.loop(k) as first:
                yield from self._of(panel, first)

    def step(
        self,
        k: Kernel,
        products: Buffer,
        weights: Buffer,
        scales: Buffer | None,
        bias: Buffer,
        before: Buffer,
        kept: Buffer,
        target: Buffer,
        rows: int,
        panel: Index | None = None,
    ) -> None:
        """One step of some images; `before` is their hidden state, which goes to `target`.

        Only the hidden values of one `panel` are computed, if that is given.
        """
        if self.spec.cell != "gru_before":
            parts = k, products, weights, scales, before, rows, 0, panel
            for sums, i, at, count in self._sums(*parts):
                if self.spec.cell == "gru":
                    sums[2] = sums[2] + bias.load(at, lanes=self.lanes)
                    sums.append(products.load(i, 2 * self.hidden + at, lanes=self.lanes))
                old = (kept if self.spec.cell == "lstm" else before).load(i, at, lanes=self.lanes)
                value, cell = self._cell(sums, old)
                if cell:
                    kept.store(cell, i, at)
                target.store_first(value, count, i, at)
            return
        reset = kept.at(rows)
        for sums, i, at, _ in self._sums(k, products, weights, scales, before, rows, 0):
            update, gate = map(sigmoid, sums)
            kept.store(update, i, at)
            reset.store(gate * before.load(i, at, lanes=self.lanes), i, at)
        behind = weights.at(2 * self.width * self.hidden)
        for (total,), i, at, count in self._sums(k, products, behind, scales, reset, rows, 1):
            update, old = (x.load(i, at, lanes=self.lanes) for x in (kept, before))
            target.store_first(_mixed(update, tanh(total), old), count, i, at)

    def _of(self, panel: Tiles, first: Int) -> Iterator[tuple[Int, int]]:
        for v in range(panel.size):
            last = panel is self.panels[-1] and v == panel.size - 1
            yield (first + v) * self.lanes, (last and self.hidden % self.lanes) or self.lanes

    def _sums(
        self,
        k: Kernel,
        products: Buffer,
        weights: Buffer,
        scales: Buffer | None,
        before: Buffer,
        rows: int,
        number: int,
        only: Index | None = None,
    ) -> Iterator[tuple[list[Vec], int, Int, int]]:
        """The sums of a pass's gates for each image and vector of hidden values.

        With them come the image, the first hidden value and the lanes that are hidden values. The
        gate that a `gru` resets is without the product of the input.
        """
        gates, lanes = self.passes[number], self.lanes
        count = len(gates)
        for panel in self.panels:
            with panel.loop(k) if only is None else panel.when(k, only) as first:
                places = [*self._of(panel, first)]
                acc = k.tile(rows, panel.size * count, lanes)
                for i, j in acc:
                    at, _ = places[j // count]
                    start = None if scales else self._product(products, gates[j % count], i, at)
                    acc[i, j] = start or k.const(0.0, lanes)
                columns = weights.at(first * (count * lanes * self.hidden))
                columns = columns.strided(acc.cols * lanes, lanes)
                add_products(k, acc, before, columns, self.hidden, UNROLL)
                for i, j in acc:
                    if scales:
                        gate, (at, _) = gates[j % count], places[j // count]
                        scale = scales.load(gate, at, lanes=lanes)
                        acc[i, j] = unscale(acc[i, j], scale, self._product(products, gate, i, at))
                for i in range(rows):
                    for v, (at, kept) in enumerate(places):
                        yield [acc[i, v * count + g] for g in range(count)], i, at, kept

    def _product(self, products: Buffer, gate: int, image: int, at: Int) -> Vec | None:
        """The product of the input that a gate's sum begins with; None for one that is reset."""
        if self.spec.cell == "gru" and gate == 2:
            return None
        return products.load(image, gate * self.hidden + at, lanes=self.lanes)

    def _cell(self, sums: list[Vec], old: Vec) -> tuple[Vec, Vec | None]:
        """The hidden state after a step, and the cell state of an LSTM; `old` was there before."""
        if self.spec.cell == "lstm":
            taken, shown, stays = map(sigmoid, sums[:3])
            cell = fma(stays, old, taken * tanh(sums[3]))
            return shown * tanh(cell), cell
        if self.spec.cell == "gru":
            update, reset = map(sigmoid, sums[:2])
            return _mixed(update, tanh(fma(reset, sums[2], sums[3])), old), None
        return (tanh(sums[0]) if self.spec.cell == "tanh" else sums[0].max(0.0)), None


def _mixed(update: Vec, new: Vec, old: Vec) -> Vec:
    """`update * old + (1 - update) * new`."""
    return fma(update, old - new, new)
