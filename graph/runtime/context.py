"""What runs of a network write: its activations, the threads' workspaces, values of NumPy steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrun.graph.build.steps import NumpyStep, Port
from fastrun.graph.core.model import Array
from fastrun.graph.runtime.loaded import Loaded
from fastrun.graph.runtime.segments import Calculation, Native, own
from fastrun.graph.runtime.weights import Block
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.notebook import card
from fastrun.kernels.native.team import Script, Team, team
from fastrun.kernels.native.team import Step as NativeStep

# Threads' workspaces begin at multiples of so many bytes.
_PAGE = 4096


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of the activations at their peak, the packed weights and the threads' workspaces."""

    arena: int
    weights: int
    workspace: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self._sizes().items())

    def _sizes(self) -> dict[str, str]:
        return {name: f"{size / 1e6:.1f} MB" for name, size in vars(self).items()}

    def _repr_html_(self) -> str:
        return card("memory of a network", self._sizes())


class Context:
    """The memory of one run at a time, and the segments of a network as they compute in it.

    `segments` run one after another. If all outputs are views of inputs, there are none. `memory`
    is what it takes, with the weights.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        arrangement, size = loaded.arrangement, loaded.arena
        local = max((s.program.local_bytes for s in arrangement.kernels), default=0)
        local = -(-(local + F32.bytes(READ_SLACK)) // _PAGE) * _PAGE
        self._arena = Block(size + local * loaded.threads)
        self._at = [self._arena.address + offset for offset in loaded.offsets]
        first = self._arena.address + size
        self._local = tuple(first + local * i for i in range(loaded.threads))
        self.steps, self.threads = arrangement.steps, loaded.threads
        self.memory = MemoryUse(size, loaded.weights.size, local * loaded.threads)
        self.segments = self.cut()
        self._alone = Team(1)
        self._inputs = {p.name: self._view(p) for p in arrangement.inputs}
        self._outputs = {p.name: (p.shape, self._view(p)) for p in arrangement.outputs}
        # Inputs of NumPy steps alone, and what those leave for each other and as outputs.
        self._given: dict[str, Array] = {
            x: np.zeros(t.shape, t.dtype) for x, t in arrangement.loose_inputs.items()
        }
        self.values: dict[str, Any] = {}

    @property
    def team(self) -> Team:
        """The threads that run native segments."""
        return team(self.threads) if self.threads > 1 else self._alone

    def fill(self, inputs: Mapping[str, Array]) -> None:
        """Copy the inputs to where steps read them."""
        for name, view in self._inputs.items():
            view[...] = inputs[name].reshape(view.shape)
        self._given = {name: np.array(inputs[name]) for name in self._given}

    def begin(self) -> None:
        """Forget what NumPy steps of an earlier run have computed."""
        self.values = dict(self._given)

    def run(self, repeats: int = 1, meet: bool = False) -> float:
        """Run all segments `repeats` times; seconds of all.

        With `meet` the clock starts when all threads have met.
        """
        match self.segments:
            case [Native(script)]:
                return self.team.run(script, repeats, meet=meet)
        seconds = 0.0
        for _ in range(repeats):
            self.begin()
            for part in self.segments:
                if isinstance(part, Calculation):
                    seconds += part.run(self.values)
                else:
                    seconds += self.team.run(part.script, meet=meet)
        return seconds

    def results(self) -> dict[str, Array]:
        """Copies of the outputs by name, in the types of the model."""
        arrangement = self._loaded.arrangement
        types = arrangement.outside
        found = {name: np.array(value) for name, value in arrangement.constants.items()}
        for name, (shape, view) in self._outputs.items():
            found[name] = np.array(view, types.get(name)).reshape(shape)
        for name in arrangement.loose_outputs:
            value = own(self.values[name])
            found[name] = value.astype(types[name]) if name in types else value
        return found

    def cut(self, apart: bool = False) -> list[Native | Calculation]:
        """The native steps between NumPy steps, one for each stage, and the NumPy steps.

        With `apart` every part is one step of the network.
        """
        loaded, parts = self._loaded, list[Native | Calculation]()
        buffers = len(loaded.arrangement.buffers)
        native, owners = list[NativeStep](), list[int]()

        def end() -> None:
            if native:
                parts.append(Native(Script(native, self.threads, self._local), [*owners]))
            native.clear()
            owners.clear()

        for i, step in enumerate(self.steps):
            if isinstance(step, NumpyStep):
                end()
                parts.append(Calculation(step, i, self._view))
                continue
            weights, bias = loaded.packed[i]
            for stage in step.program.stages:
                native.append(
                    NativeStep(
                        loaded.libraries[step.program.digest].address(stage.symbol),
                        stage.tasks,
                        self._at[step.src],
                        weights,
                        bias,
                        self._at[step.add] if step.add is not None else 0,
                        self._at[step.dst],
                        self._at[buffers + i],
                        int(step.joins),
                    )
                )
                owners.append(i)
            if apart:
                end()
        end()
        return parts

    def _view(self, port: Port) -> Array:
        """The pixels of a tensor of layout NCHW in the arena, as (n, c, h, w)."""
        return self.pixels(port)[..., 0]

    def pixels(self, port: Port) -> Array:
        """A tensor in the arena in any layout: (n, blocks, h, w, channels of a block).

        There may be padding channels in the last block, whose values do not matter.
        """
        where, dtype = port.placement, port.placement.dtype
        start = self._at[port.buffer] - self._arena.address + dtype.bytes(where.origin)
        steps = (where.n_stride, where.block_stride, where.y_stride, where.x_stride, 1)
        shape = (where.n, where.blocks, where.h, where.w, where.block)
        strides = tuple(map(dtype.bytes, steps))
        return np.ndarray(shape, dtype.numpy, self._arena.bytes, start, strides)

    def stored(self, port: Port) -> Array:
        """A copy of a tensor in the arena, in any layout, in its shape in the graph."""
        where, start = port.placement, self._at[port.buffer] - self._arena.address
        size = where.dtype.bytes(where.size)
        buffer = self._arena.bytes[start : start + size].view(where.dtype.numpy)
        return where.unpack(buffer).reshape(port.shape)
