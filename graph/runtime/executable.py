"""A network ready to run: code loaded, weights packed, one native call per inference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.build.memory import Lifetime, allocate
from fastrun.graph.build.steps import Arrangement, NumpyStep, Port, Step
from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Array, Shape, Tensor
from fastrun.graph.plan.plan import Plan
from fastrun.graph.runtime.inputs import (
    by_name,
    check_arrays,
    check_shape,
    only_or_all,
    unknown_input,
)
from fastrun.graph.runtime.segments import Calculation, Native, own
from fastrun.graph.runtime.weights import Block, Common, Weights
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.forks import renewed_in_children
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.notebook import card
from fastrun.kernels.core.program import pack_bias, pack_channels
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.precompile import precompile
from fastrun.kernels.native.team import Script, Team, team
from fastrun.kernels.native.team import Step as NativeStep

T = TypeVar("T")

# What a timeline tells of each step.
_TOLD = ("name", "work", "algorithm", "layouts", "output", "flops", "nbytes")

# Threads' workspaces begin at multiples of so many bytes.
_PAGE = 4096

Reload = Callable[[Plan], "Executable"]

# Gives the packed weights of a step. Several plans of a network may share them.
Packed = Callable[[Step], Array]


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
        precompile([step.program.ir for step in arrangement.kernels], cpu, cache)
        for kernel in arrangement.kernels:
            program = kernel.program
            if program.ir not in libraries:
                symbols = [stage.symbol for stage in program.stages]
                libraries[program.ir] = Library(cache.object(program.ir, cpu), symbols)
        offsets, arena = _arena(arrangement)
        block = Weights(common)
        pairs, light = [], list[Step | NumpyStep]()
        for step in arrangement.steps:
            if isinstance(step, NumpyStep):
                pairs.append((0, 0))
                light.append(step)
                continue
            weights = packed(step)
            if step.gathered:
                src, size = offsets[step.src], program.io.src.dtype.bytes()
                places = [(offsets[buffer] - src) // size + at for buffer, at in step.gathered]
                table = pack_channels(places).view(weights.dtype)
                weights = np.concatenate([table, weights])
            bias = None if step.bias is None else pack_bias(step.bias)
            pairs.append((block.put(weights), block.put(bias)))
            light.append(replace(step, weights=None, bias=None))
        arrangement = replace(arrangement, steps=tuple(light))
        return cls(arrangement, threads, offsets, arena, libraries, block, pairs, plan)


def _arena(arrangement: Arrangement) -> tuple[list[int], int]:
    """Offsets of the buffers and of the steps' workspaces, and the size of the arena in bytes."""
    shared = [
        Lifetime(step.program.shared_bytes if isinstance(step, Step) else 0, i, i)
        for i, step in enumerate(arrangement.steps)
    ]
    return allocate([*arrangement.buffers, *shared])


class Executable:
    """A network on `threads` threads.

    `memory` is the memory it uses, `plan` the plan it follows.

    Runs of one executable take turns. A clone shares the weights and has activations of its own:
    on one thread clones run at the same time, on several threads they take turns. A forked
    process may use an executable of its parent, even if it was running at the fork. One that was
    loaded from a model is pickled as the model and the plan, so that another process gets the same
    network; copies are clones.
    """

    reload: Reload | None = None
    """What makes the same network again of its plan; it is pickled with the model inside."""

    def __init__(self, model: _Model) -> None:
        self._model = model
        self.plan = model.plan
        arrangement = model.arrangement
        offsets, size = model.offsets, model.arena
        local = max((s.program.local_bytes for s in arrangement.kernels), default=0)
        local = -(-(local + F32.bytes(READ_SLACK)) // _PAGE) * _PAGE
        self._arena = Block(size + local * model.threads)
        self._at = [self._arena.address + offset for offset in offsets]
        first = self._arena.address + size
        self._local = tuple(first + local * i for i in range(model.threads))
        # If all outputs are views of inputs, there is nothing to run.
        self._segments = self._cut()
        self._alone = Team(1)
        self._inputs = {p.name: (p, self._view(p)) for p in arrangement.inputs}
        self._types = arrangement.outside
        self._outputs = {p.name: (p, self._view(p)) for p in arrangement.outputs}
        # Inputs of NumPy steps alone, and what those leave for each other and as outputs.
        loose = arrangement.loose_inputs.items()
        self._given: dict[str, Array] = {x: np.zeros(t.shape, t.dtype) for x, t in loose}
        self._values: dict[str, Any] = {}
        f32 = np.dtype(np.float32)
        self._wanted = {p.name: (p.shape, f32) for p in arrangement.inputs}
        self._wanted |= {x: (t.shape, t.dtype) for x, t in loose}
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

    def __reduce__(self) -> tuple[Reload, tuple[Plan]]:
        """Its model and its plan: what another process needs to load the same again."""
        if self.reload is None:
            raise TypeError(
                "this Executable was not loaded from a model, and is code and memory of this "
                "process: it cannot be pickled; clone() it here"
            )
        return self.reload, (self.plan,)

    def __copy__(self) -> Executable:
        return self.clone()

    def __deepcopy__(self, _: object) -> Executable:
        return self.clone()

    def __repr__(self) -> str:
        threads = f"{self._model.threads} thread{'s' * (self._model.threads > 1)}"
        expected = f"{1e3 * self.plan.seconds:.3g} ms expected"
        return f"<{self.plan.network}: {len(self.steps)} steps, {threads}, {expected}>"

    def _repr_html_(self) -> str:
        def listed(shapes: Mapping[str, Shape | None]) -> str:
            known = {x: "?" if s is None else "x".join(map(str, s)) for x, s in shapes.items()}
            return ", ".join(f"{x} {text}" for x, text in known.items())

        facts = {"inputs": listed(self.inputs), "outputs": listed(self.outputs)}
        facts |= {"steps": str(len(self.steps)), "threads": str(self._model.threads)}
        facts |= {"expected": f"{1e3 * self.plan.seconds:.3g} ms", "memory": str(self.memory)}
        return card(f"network {self.plan.network}", facts)

    @property
    def steps(self) -> tuple[Step | NumpyStep, ...]:
        """The steps in the order of running. Their weights are packed elsewhere: None here."""
        return self._model.arrangement.steps

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs by name. Arrays of float32 fit every input but the loose ones."""
        loose = {x: tensor.shape for x, tensor in self.loose_inputs.items()}
        return {port.name: port.shape for port in self._model.arrangement.inputs} | loose

    @property
    def loose_inputs(self) -> Mapping[str, Tensor]:
        """The inputs that only NumPy steps read, which have another element type than float32."""
        return self._model.arrangement.loose_inputs

    @property
    def outputs(self) -> dict[str, Shape | None]:
        """Shapes of the outputs by name; None where the shape depends on data."""
        arrangement = self._model.arrangement
        found: dict[str, Shape | None] = {x: a.shape for x, a in arrangement.constants.items()}
        found |= {port.name: port.shape for port in arrangement.outputs}
        return found | {x: t.shape if t else None for x, t in arrangement.loose_outputs.items()}

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
        other = Executable(self._model)
        other.reload = self.reload
        return other

    def __call__(self, inputs: Mapping[str, NDArray[np.float32]] | Array) -> Any:
        """The output for the inputs, or all outputs by name if the network has several.

        Inputs and errors are those of `run`.
        """
        return only_or_all(self.run(inputs))

    def run(self, inputs: Mapping[str, NDArray[np.float32]] | Array) -> dict[str, Array]:
        """The outputs by name for the inputs by name. A single input needs no name.

        Inputs that the model never reads may be missing, or be anything. Inputs that the model
        itself converts to float32, such as pictures of bytes, may also have the model's type.
        Inputs that only NumPy steps read, such as indices, have the model's type.

        Raises:
            InputError: an input is missing, unknown, or of the wrong shape or type.
            GraphError: a NumPy step cannot compute with these inputs.
            RuntimeError: a signal handler calls this during a run in the same thread.
        """
        inputs = by_name(inputs, self._wanted)
        self._check(inputs)

        def work() -> dict[str, Array]:
            self._fill(inputs)
            self._walk()
            constants = self._model.arrangement.constants.items()
            loose = self._model.arrangement.loose_outputs
            found = {name: np.array(value) for name, value in constants} | {
                name: np.array(view, self._types.get(name)).reshape(port.shape)
                for name, (port, view) in self._outputs.items()
            }
            return found | {name: self._typed(name, own(self._values[name])) for name in loose}

        return self._in_turn(work)

    def trace(self, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, Array]:
        """The result of every step that computes, by the name of the tensor, as it is stored.

        Inputs and errors are those of `run`. The steps are those of a run, one at a time.
        """
        self._check(inputs)
        found = dict[str, Array]()

        def work() -> None:
            self._fill(inputs)
            values = dict(self._given)
            for part in self._cut(apart=True):
                if isinstance(part, Calculation):
                    found.update((x, own(value)) for x, value in part.results(values).items())
                    continue
                self._team.run(part.script)
                if port := self.steps[part.owners[0]].result:
                    found[port.name] = self._stored(port)

        self._in_turn(work)
        return found

    def seconds(self, repeats: int = 1) -> float:
        """Seconds of `repeats` runs of the last inputs, without Python between native steps."""
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

    def timeline(self, repeats: int = 10) -> list[dict[str, Any]]:
        """What every thread did when, in the run of `repeats` that took the median time.

        A row for every thread and stage: `thread`, `stage` (counted in the order of running),
        `step` (the index of its step) and that step's name, work, algorithm, layouts, output,
        `flops` and `nbytes`; in seconds from the start of the run, `start`; in seconds, `working`,
        and `waiting` for the other threads behind it.
        """
        runs: list[tuple[float, list[dict[str, Any]]]] = []

        def work() -> None:
            for _ in range(repeats):
                rows, clock, stage = list[dict[str, Any]](), 0.0, 0
                self._values = dict(self._given)
                for part in self._segments:
                    moments = self._moments(part)
                    owners = [part.owner] if isinstance(part, Calculation) else part.owners
                    for thread, seen in enumerate(moments + clock):
                        for k, i in enumerate(owners):
                            begin, done, end = map(float, seen[2 * k : 2 * k + 3])
                            row = {key: getattr(self.steps[i], key) for key in _TOLD}
                            row |= {"thread": thread, "step": i, "stage": stage + k}
                            row |= {"start": begin, "working": done - begin, "waiting": end - done}
                            rows.append(row)
                    clock, stage = clock + float(moments.max()), stage + len(owners)
                runs.append((clock, rows))

        self._in_turn(work)
        return sorted(runs, key=lambda run: run[0])[len(runs) // 2][1]

    def _thread_times(self, repeats: int) -> NDArray[np.float64]:
        """Seconds of working and of waiting: (run, thread, step, 2)."""
        times = np.zeros((repeats, self._model.threads, len(self.steps), 2))

        def work() -> None:
            for row in times:
                self._values = dict(self._given)
                for part in self._segments:
                    owners = [part.owner] if isinstance(part, Calculation) else part.owners
                    for mine, seen in zip(row, self._moments(part), strict=True):
                        np.add.at(mine, owners, np.diff(seen).reshape(-1, 2))

        self._in_turn(work)
        return times

    def _moments(self, part: Native | Calculation) -> NDArray[np.float64]:
        """Run a part once. Seconds from its start, a row for each thread.

        The first moment is the start; each stage has two, the end of its work and of its waiting.
        """
        threads = self._model.threads
        if isinstance(part, Calculation):
            found = np.full((threads, 3), [0.0, 0.0, part.run(self._values)])
            found[0, 1] = found[0, 2]  # one thread works, the others wait
            return found
        stamps = np.zeros((threads, len(part.owners), 2), np.int64)
        whole = self._team.run(part.script, stamps=stamps.ctypes.data, meet=True)
        # A run starts when all threads have met; no stamp marks that moment.
        start = stamps[0, -1, 1] - round(whole * 1e9)
        seen = np.maximum(stamps.reshape(threads, -1) - start, 0) * 1e-9
        return np.concatenate([np.zeros((threads, 1)), seen], axis=1)

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

    def _walk(self, repeats: int = 1, meet: bool = False) -> float:
        """Run all segments `repeats` times; seconds of all."""
        match self._segments:
            case [Native(script)]:
                return self._team.run(script, repeats, meet=meet)
        seconds = 0.0
        for _ in range(repeats):
            self._values = dict(self._given)
            for part in self._segments:
                if isinstance(part, Calculation):
                    seconds += part.run(self._values)
                else:
                    seconds += self._team.run(part.script, meet=meet)
        return seconds

    def _typed(self, name: str, value: Any) -> Any:
        """An output in the model's element type, if that is another one than here."""
        return value.astype(self._types[name]) if name in self._types else value

    def _fill(self, inputs: Mapping[str, NDArray[np.generic]]) -> None:
        for name, (_, view) in self._inputs.items():
            view[...] = inputs[name].reshape(view.shape)
        self._given = {name: np.array(inputs[name]) for name in self._given}

    @property
    def _team(self) -> Team:
        threads = self._model.threads
        return team(threads) if threads > 1 else self._alone

    def _cut(self, apart: bool = False) -> list[Native | Calculation]:
        """The native steps between NumPy steps, one for each stage, and the NumPy steps.

        With `apart` every part is one step of the network.
        """
        buffers = len(self._model.arrangement.buffers)
        model, parts = self._model, list[Native | Calculation]()
        native, owners = list[NativeStep](), list[int]()

        def end() -> None:
            if native:
                parts.append(Native(Script(native, model.threads, self._local), [*owners]))
            native.clear()
            owners.clear()

        for i, step in enumerate(model.arrangement.steps):
            if isinstance(step, NumpyStep):
                end()
                parts.append(Calculation(step, i, self._view))
                continue
            weights, bias = model.packed[i]
            for stage in step.program.stages:
                native.append(
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
            if apart:
                end()
        end()
        return parts

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
        shapes = {name: shape for name, (shape, _) in self._wanted.items()}
        check_arrays(inputs, shapes, self._model.arrangement.unread)
        for name, (shape, dtype) in self._wanted.items():
            x = inputs[name]
            if x.dtype not in (dtype, self._types.get(name, dtype)):
                raise InputError(f"input {name!r} is {x.dtype}: give it as {dtype}")
            check_shape(name, x.shape, shape)
