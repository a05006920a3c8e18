"""A network ready to run: code loaded, weights packed, one native call per inference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.build.memory import Lifetime, allocate
from fastrun.graph.build.steps import Arrangement, Port, Step
from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Array
from fastrun.graph.plan.plan import Plan
from fastrun.graph.runtime.inputs import check_arrays, check_shape, unknown_input
from fastrun.graph.runtime.weights import Block, Common, Weights
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.forks import renewed_in_children
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.program import pack_bias, pack_channels
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.precompile import precompile
from fastrun.kernels.native.team import Script, Team, team
from fastrun.kernels.native.team import Step as NativeStep

T = TypeVar("T")

# Threads' workspaces begin at multiples of so many bytes.
_PAGE = 4096

# Gives the packed weights of a step. Several plans of a network may share them.
Packed = Callable[[Step], Array]


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of the activations at their peak, the packed weights and the threads' workspaces."""

    arena: int
    weights: int
    workspace: int

    def __str__(self) -> str:
        sizes = (f"{name} {size / 1e6:.1f} MB" for name, size in vars(self).items())
        return ", ".join(sizes)


@dataclass(frozen=True)
class _Model:
    """The part that clones share: code and packed weights.

    `offsets` are places in an arena of `arena` bytes: of all buffers, then of the workspaces of
    all steps. `packed` has the addresses of each step's weights and bias, 0 for none.
    """

    arrangement: Arrangement
    threads: int
    offsets: Sequence[int]
    arena: int
    libraries: Mapping[str, Library]
    weights: Weights
    packed: Sequence[tuple[int, int]]
    plan: Plan

    @classmethod
    def load(
        cls,
        arrangement: Arrangement,
        cpu: Cpu,
        threads: int,
        plan: Plan,
        packed: Packed,
        common: Common | None,
    ) -> _Model:
        """Compile the kernels that the object cache lacks; pack the weights in the order of use."""
        cache, libraries = ObjectCache(), dict[str, Library]()
        precompile([step.program.ir for step in arrangement.steps], cpu, cache)
        for step in arrangement.steps:
            program = step.program
            if program.ir not in libraries:
                symbols = [stage.symbol for stage in program.stages]
                libraries[program.ir] = Library(cache.object(program.ir, cpu), symbols)
        offsets, arena = _arena(arrangement)
        block = Weights(common)
        pairs = []
        for step in arrangement.steps:
            weights = packed(step)
            if step.gathered:
                src, size = offsets[step.src], program.io.src.dtype.bytes()
                places = [(offsets[buffer] - src) // size + at for buffer, at in step.gathered]
                table = pack_channels(places).view(weights.dtype)
                weights = np.concatenate([table, weights])
            bias = None if step.bias is None else pack_bias(step.bias)
            pairs.append((block.put(weights), block.put(bias)))
        light = (replace(step, weights=None, bias=None) for step in arrangement.steps)
        arrangement = replace(arrangement, steps=tuple(light))
        return cls(arrangement, threads, offsets, arena, libraries, block, pairs, plan)


def _arena(arrangement: Arrangement) -> tuple[list[int], int]:
    """Offsets of the buffers and of the steps' workspaces, and the size of the arena in bytes."""
    steps = enumerate(arrangement.steps)
    shared = [Lifetime(step.program.shared_bytes, i, i) for i, step in steps]
    return allocate([*arrangement.buffers, *shared])


class Executable:
    """A network on `threads` threads.

    `memory` is the memory it uses, `plan` the plan it follows.

    Runs of one executable take turns. A clone shares the weights and has activations of its own:
    on one thread clones run at the same time, on several threads they take turns. A forked
    process may use an executable of its parent, even if it was running at the fork.
    """

    def __init__(self, model: _Model) -> None:
        self._model = model
        self.plan = model.plan
        steps, buffers = model.arrangement.steps, model.arrangement.buffers
        offsets, size = model.offsets, model.arena
        local = max((s.program.local_bytes for s in steps), default=0)
        local = -(-(local + F32.bytes(READ_SLACK)) // _PAGE) * _PAGE
        self._arena = Block(size + local * model.threads)
        self._at = [self._arena.address + offset for offset in offsets]
        first = self._arena.address + size
        self._local = tuple(first + local * i for i in range(model.threads))
        native, self._owners = self._native(len(buffers))
        self._stages = native
        # If all outputs are views of inputs, there is nothing to run.
        self._script = Script(native, model.threads, self._local) if native else None
        self._alone = Team(1)
        self._inputs = {p.name: (p, self._view(p)) for p in model.arrangement.inputs}
        self._types = model.arrangement.outside
        self._outputs = {p.name: (p, self._view(p)) for p in model.arrangement.outputs}
        self.memory = MemoryUse(size, model.weights.size, local * model.threads)
        self._renew()
        renewed_in_children(self, Executable._renew)

    @classmethod
    def of(
        cls,
        arrangement: Arrangement,
        cpu: Cpu,
        threads: int,
        plan: Plan,
        packed: Packed = Step.packed,
        common: Common | None = None,
    ) -> Executable:
        """Compile, pack and allocate. Packed weights that are in `common` already are used there.

        Raises:
            CompileError: LLVM refuses a kernel.
        """
        return cls(_Model.load(arrangement, cpu, threads, plan, packed, common))

    def _renew(self) -> None:
        """Reset the lock: the threads that may have held it do not exist in a forked process."""
        self._lock, self._running = threading.RLock(), False

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an Executable is code and memory of this process and cannot be pickled or copied: "
            "load the model there (with `plan=` its plan), or clone() it here"
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in the order of running. Their weights are packed elsewhere: None here."""
        return self._model.arrangement.steps

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs by name. Arrays of float32 fit every input."""
        return {port.name: port.shape for port in self._model.arrangement.inputs}

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs by name."""
        constants = self._model.arrangement.constants.items()
        computed = {port.name: port.shape for port in self._model.arrangement.outputs}
        return {name: value.shape for name, value in constants} | computed

    def at(self, shapes: Mapping[str, Sequence[int]] | None = None) -> Executable:
        """This network, if its inputs have these shapes: as `DynamicExecutable.at`.

        Raises:
            InputError: there is no such input, or it has another shape.
        """
        for name, shape in (shapes or {}).items():
            if name not in self.inputs:
                raise unknown_input(name, self.inputs)
            check_shape(name, tuple(shape), self.inputs[name])
        return self

    def clone(self) -> Executable:
        """The same network with activations of its own."""
        return Executable(self._model)

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, Array]:
        """The outputs by name for the inputs by name.

        Inputs that the model never reads may be missing, or be anything. Inputs that the model
        itself converts to float32, such as pictures of bytes, may also have the model's type.

        Raises:
            InputError: an input is missing, unknown, of the wrong shape or not float32.
            RuntimeError: a signal handler calls this during a run in the same thread.
        """
        self._check(inputs)

        def work() -> dict[str, Array]:
            self._fill(inputs)
            self._walk()
            constants = self._model.arrangement.constants.items()
            return {name: np.array(value) for name, value in constants} | {
                name: np.array(view, self._types.get(name)).reshape(port.shape)
                for name, (port, view) in self._outputs.items()
            }

        return self._in_turn(work)

    def trace(self, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, Array]:
        """The result of every step that computes, by the name of the tensor, as it is stored.

        Inputs and errors are those of `run`. The steps are those of a run, one at a time.
        """
        self._check(inputs)
        found = dict[str, Array]()

        def work() -> None:
            self._fill(inputs)
            for i, step in enumerate(self.steps):
                stages = [
                    s for s, owner in zip(self._stages, self._owners, strict=True) if owner == i
                ]
                self._run(Script(stages, self._model.threads, self._local))
                if port := step.result:
                    found[port.name] = self._stored(port)

        self._in_turn(work)
        return found

    def seconds(self, repeats: int = 1) -> float:
        """Seconds of `repeats` runs of the last inputs, without Python between the runs."""
        return self._in_turn(lambda: self._walk(repeats, meet=True))

    def profile(self, repeats: int = 10) -> list[dict[str, Any]]:
        """A row for every step: name, work, algorithm, layouts, seconds and share of the whole.

        `output` is the tensor it computes, `expected` the seconds that the plan expects. `seconds`
        are medians of `repeats` runs, as means over the threads. Of these, `waiting` is the time in
        which threads had no work left in the step. `imbalance` is the most that a thread worked,
        relative to the mean of all: 1 if all worked equally long.
        """
        times = self._thread_times(repeats)
        seconds, waiting = np.median(times.sum(axis=-1).mean(axis=1), axis=0), times[..., 1]
        working = times[..., 0]
        mean = working.mean(axis=1)
        imbalance = working.max(axis=1) / np.where(mean > 0, mean, 1)
        return [
            {
                "name": step.name,
                "work": step.work,
                "algorithm": step.algorithm,
                "layouts": step.layouts,
                "output": step.output,
                "seconds": float(seconds[i]),
                "share": float(seconds[i] / seconds.sum()),
                "expected": step.seconds,
                "waiting": float(np.median(waiting[..., i].mean(axis=1))),
                "imbalance": float(np.median(imbalance[:, i])),
            }
            for i, step in enumerate(self.steps)
        ]

    def step_seconds(self, repeats: int = 1) -> NDArray[np.float64]:
        """Seconds of every step in each of `repeats` runs (a row), as means over the threads."""
        return self._thread_times(repeats).sum(axis=-1).mean(axis=1)  # type: ignore[no-any-return]

    def _thread_times(self, repeats: int) -> NDArray[np.float64]:
        """Seconds of working and of waiting: (run, thread, step, 2)."""
        threads, stages = self._model.threads, len(self._owners)
        times = np.zeros((repeats, threads, len(self.steps), 2))
        if not stages:
            return times
        stamps = np.zeros((threads, stages, 2), np.int64)

        def work() -> None:
            for row in times:
                whole = self._walk(stamps=stamps.ctypes.data, meet=True)
                # A run starts when all threads have met; no stamp marks that moment.
                start = stamps[0, -1, 1] - round(whole * 1e9)
                for mine, seen in zip(row, stamps, strict=True):
                    moments = np.maximum(np.concatenate([[start], seen.reshape(-1)]), start)
                    np.add.at(mine, self._owners, np.diff(moments).reshape(-1, 2) * 1e-9)

        self._in_turn(work)
        return times

    def _in_turn(self, work: Callable[[], T]) -> T:
        with self._lock:
            # The lock is reentrant: a signal handler in the same thread gets here during a run.
            if self._running:
                raise RuntimeError(
                    "a signal handler runs a network that its own thread is running: use a clone()"
                )
            try:
                self._running = True
                return work()
            finally:
                self._running = False

    def _walk(self, repeats: int = 1, stamps: int = 0, meet: bool = False) -> float:
        return self._run(self._script, repeats, stamps, meet) if self._script else 0.0

    def _run(self, script: Script, repeats: int = 1, stamps: int = 0, meet: bool = False) -> float:
        threads = self._model.threads
        workers = team(threads) if threads > 1 else self._alone
        return workers.run(script, repeats, stamps=stamps, meet=meet)

    def _fill(self, inputs: Mapping[str, NDArray[np.float32]]) -> None:
        for name, (_, view) in self._inputs.items():
            view[...] = inputs[name].reshape(view.shape)

    def _native(self, buffers: int) -> tuple[list[NativeStep], list[int]]:
        """The native steps, one for each stage, and the index of each one's step."""
        model, found, owners = self._model, list[NativeStep](), list[int]()
        for i, step in enumerate(model.arrangement.steps):
            weights, bias = model.packed[i]
            for stage in step.program.stages:
                found.append(
                    NativeStep(
                        model.libraries[step.program.ir].address(stage.symbol),
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
        return found, owners

    def _view(self, port: Port) -> Array:
        """The pixels of an input or output in the arena, as (n, c, h, w)."""
        where, dtype = port.placement, port.placement.dtype
        start = self._at[port.buffer] - self._arena.address + dtype.bytes(where.origin)
        steps = (where.n_stride, where.block_stride, where.y_stride, where.x_stride)
        shape, strides = (where.n, where.c, where.h, where.w), tuple(map(dtype.bytes, steps))
        return np.ndarray(shape, dtype.numpy, self._arena.bytes, start, strides)

    def _stored(self, port: Port) -> Array:
        """A copy of a tensor in the arena, in any layout, in its shape in the graph."""
        where, start = port.placement, self._at[port.buffer] - self._arena.address
        size = where.dtype.bytes(where.size)
        buffer = self._arena.bytes[start : start + size].view(where.dtype.numpy)
        return where.unpack(buffer).reshape(port.shape)

    def _check(self, inputs: Mapping[str, NDArray[np.float32]]) -> None:
        ports = {name: port.shape for name, (port, _) in self._inputs.items()}
        check_arrays(inputs, ports, self._model.arrangement.unread)
        for name, shape in ports.items():
            x = inputs[name]
            if x.dtype not in (np.float32, self._types.get(name, np.float32)):
                raise InputError(f"input {name!r} is {x.dtype}: give it as float32")
            check_shape(name, x.shape, shape)
