"""A network of which only what follows a change is computed again: of a tensor, or of weights."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from fastrun.graph.build.steps import Arrangement, Port, Step
from fastrun.graph.core.model import Array
from fastrun.graph.plan.plan import Plan
from fastrun.graph.runtime.context import Context
from fastrun.graph.runtime.loaded import Loaded, with_table
from fastrun.graph.runtime.segments import Calculation, Native
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.program import pack_bias

Inputs = Mapping[str, Array]

Change = Callable[[Array], Array]
"""Gives other values for those of a tensor, element by element."""


class Incremental:
    """A network on one thread that keeps all tensors of a run, each in a place of its own.

    After a run a tensor or the weights of a step may be changed, and the steps behind the change
    run again. `steps` says how many of them come first: by the names of the tensors that can be
    changed, 0 for inputs. `size` are the bytes that each run takes.

    Raises:
        CompileError: LLVM refuses a kernel.
    """

    def __init__(self, arrangement: Arrangement, cpu: Cpu, plan: Plan) -> None:
        end = len(arrangement.steps)
        buffers = tuple(replace(x, first=0, last=end) for x in arrangement.buffers)
        self._arrangement = replace(arrangement, buffers=buffers)
        self._loaded = Loaded.of(self._arrangement, cpu, 1, plan)
        self.size = self._loaded.arena
        self._ports = arrangement.ports
        self.steps = {name: i for name, (i, _) in self._ports.items()}

    def run(self, inputs: Inputs) -> Run:
        """A run of these inputs, in memory of its own."""
        return Run(self._loaded, self._ports, inputs)

    @contextmanager
    def weighing(self, name: str, weights: Array, bias: Array | None) -> Iterator[None]:
        """Let the step that computes a tensor have other weights and another bias for a while.

        They replace those that it has, so both have their shapes. Runs see them `Run.again`.
        """
        i = self.steps[name] - 1
        step, places = self._arrangement.steps[i], self._loaded.packed[i]
        assert isinstance(step, Step)
        assert step.weights is not None
        step = replace(step, weights=weights.reshape(step.weights.shape))
        values = [with_table(step, self._loaded.offsets, step.packed())]
        if step.bias is not None and bias is not None:
            values.append(pack_bias(bias.reshape(step.bias.shape)))
        memory = [_memory(*both) for both in zip(places, values, strict=False)]
        before = [x.copy() for x in memory]
        try:
            for place, new in zip(memory, values, strict=True):
                place[:] = new
            yield
        finally:
            for place, old in zip(memory, before, strict=True):
                place[:] = old


class Run:
    """A run of an `Incremental` network, whose tensors are all there.

    Changes cost least from the last step to the first: a change leaves the results of the steps
    behind it other than those of the run, and they are computed again where that is needed.
    """

    def __init__(
        self, loaded: Loaded, ports: Mapping[str, tuple[int, Port]], inputs: Inputs
    ) -> None:
        self._context, self._ports = Context(loaded), ports
        self._work: list[Callable[[], object]] = [lambda: self._begin(inputs)]
        self._work += [partial(self._step, part) for part in self._context.cut(apart=True)]
        self._valid = 0  # the work at the beginning whose results are those of the run
        self.outputs = self.again(len(self._work))

    def after(self, changes: Mapping[str, Change]) -> dict[str, Array]:
        """The outputs if these tensors were changed so, element by element, the first ones first.

        Later ones are computed from changed ones, and changed then.
        """
        places = sorted(
            ((*self._ports[name], change) for name, change in changes.items()),
            key=lambda place: place[0],
        )
        first, valid = places[0][0], self._valid
        for i, port, change in places:
            self._do(valid, i + 1)
            memory = self._context.pixels(port)
            memory[...] = change(memory)
            valid = i + 1
        self._do(valid)
        self._valid = first
        return self._context.results()

    def again(self, step: int) -> dict[str, Array]:
        """The outputs after what comes from the step of this number on has run again.

        Steps are counted from 1; the first of all is 0, to fill in the inputs.
        """
        self._do(min(self._valid, step))
        self._valid = step
        return self._context.results()

    def _do(self, first: int, end: int | None = None) -> None:
        for work in self._work[first:end]:
            work()

    def _begin(self, inputs: Inputs) -> None:
        self._context.fill(inputs)
        self._context.begin()

    def _step(self, part: Native | Calculation) -> None:
        if isinstance(part, Calculation):
            part.results(self._context.values)  # of which none is forgotten
        else:
            self._context.team.run(part.script)


def _memory(address: int, like: Array) -> Array:
    """The numbers at an address, as many and of the same type as those given."""
    there = (ctypes.c_uint8 * like.nbytes).from_address(address)
    return np.ctypeslib.as_array(there).view(like.dtype)
