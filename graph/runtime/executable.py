"""A network ready to run: code loaded, weights packed, one native call per inference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.build.steps import Arrangement, NumpyStep, Step
from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Array, Shape, Tensor
from fastrun.graph.plan.plan import Plan
from fastrun.graph.runtime.context import Context
from fastrun.graph.runtime.defaults import Defaults
from fastrun.graph.runtime.inputs import (
    by_name,
    check_arrays,
    check_indices,
    check_shape,
    only_or_all,
    unknown_input,
)
from fastrun.graph.runtime.loaded import Loaded, Packed
from fastrun.graph.runtime.segments import Calculation, own
from fastrun.graph.runtime.timeline import profile, thread_times, timeline
from fastrun.graph.runtime.weights import Common
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.forks import renewed_in_children
from fastrun.kernels.core.notebook import card

T = TypeVar("T")

Reload = Callable[[Plan], "Executable"]


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
    defaults: Defaults | None = None
    """The inputs that may be left out, because the model has values for them."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._context = Context(loaded)
        self.plan, self.memory = loaded.plan, self._context.memory
        arrangement = loaded.arrangement
        self._shapes = self.inputs
        types = {x: np.dtype(np.float32) for x in self._shapes}
        types |= {x: tensor.dtype for x, tensor in arrangement.loose_inputs.items()}
        self._types = {x: (t, arrangement.outside.get(x, t)) for x, t in types.items()}
        self._types |= {x: (arrangement.outside[x],) * 2 for x in arrangement.whole}
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
        return cls(Loaded.of(arrangement, cpu, threads, plan, packed, common))

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
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        expected = f"{1e3 * self.plan.seconds:.3g} ms expected"
        return f"<{self.plan.network}: {len(self.steps)} steps, {threads}, {expected}>"

    def _repr_html_(self) -> str:
        def listed(shapes: Mapping[str, Shape | None]) -> str:
            known = {x: "?" if s is None else "x".join(map(str, s)) for x, s in shapes.items()}
            return ", ".join(f"{x} {text}" for x, text in known.items())

        facts = {"inputs": listed(self.inputs), "outputs": listed(self.outputs)}
        facts |= {"steps": str(len(self.steps)), "threads": str(self.threads)}
        facts |= {"expected": f"{1e3 * self.plan.seconds:.3g} ms", "memory": str(self.memory)}
        return card(f"network {self.plan.network}", facts)

    @property
    def threads(self) -> int:
        """The threads that a run uses."""
        return self._loaded.threads

    @property
    def steps(self) -> tuple[Step | NumpyStep, ...]:
        """The steps in the order of running. Their weights are packed elsewhere: None here."""
        return self._loaded.arrangement.steps

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs by name. Integers and truth values have the model's type."""
        loose = {x: tensor.shape for x, tensor in self.loose_inputs.items()}
        return {port.name: port.shape for port in self._loaded.arrangement.inputs} | loose

    @property
    def loose_inputs(self) -> Mapping[str, Tensor]:
        """The inputs that only NumPy steps read, which have another element type than float32."""
        return self._loaded.arrangement.loose_inputs

    @property
    def outputs(self) -> dict[str, Shape | None]:
        """Shapes of the outputs by name; None where the shape depends on data."""
        arrangement = self._loaded.arrangement
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
        other = Executable(self._loaded)
        other.reload, other.defaults = self.reload, self.defaults
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
        Integers that the model computes with, indices and truth values have the model's type.
        Inputs for which the model has a value (`defaults`) may be missing. Other values are loaded
        like another model when they first come, and the last four of them kept.

        Raises:
            InputError: an input is missing, unknown, or of the wrong shape or type.
            GraphError: a NumPy step cannot compute with these inputs.
            RuntimeError: a signal handler calls this during a run in the same thread.
        """
        inputs = by_name(inputs, self._shapes)
        if self.defaults and (found := self.defaults.run(inputs)) is not None:
            return found
        self._check(inputs)

        def work() -> dict[str, Array]:
            self._context.fill(inputs)
            self._context.run()
            return self._context.results()

        return self._in_turn(work)

    def trace(self, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, Array]:
        """The result of every step that computes, by the name of the tensor, as it is stored.

        Inputs and errors are those of `run`. The steps are those of a run, one at a time.
        """
        self._check(inputs)
        context, found = self._context, dict[str, Array]()

        def work() -> None:
            context.fill(inputs)
            context.begin()
            for part in context.cut(apart=True):
                if isinstance(part, Calculation):
                    results = part.results(context.values).items()
                    found.update((x, own(value)) for x, value in results)
                    continue
                context.team.run(part.script)
                if port := self.steps[part.owners[0]].result:
                    found[port.name] = context.stored(port)

        self._in_turn(work)
        return found

    def seconds(self, repeats: int = 1) -> float:
        """Seconds of `repeats` runs of the last inputs, without Python between native steps."""
        return self._in_turn(lambda: self._context.run(repeats, meet=True))

    def profile(self, repeats: int = 10) -> list[dict[str, Any]]:
        """A row for every step: name, work, algorithm, layouts, seconds and share of the whole.

        `output` is the tensor it computes, `expected` the seconds that the plan expects. `seconds`
        are medians of `repeats` runs, as means over the threads. Of these, `waiting` is the time in
        which threads had no work left in the step. `imbalance` is the most that a thread worked,
        relative to the mean of all: 1 if all worked equally long.
        """
        return self._in_turn(lambda: profile(self._context, repeats))

    def step_seconds(self, repeats: int = 1) -> NDArray[np.float64]:
        """Seconds of every step in each of `repeats` runs (a row), as means over the threads."""
        times = self._in_turn(lambda: thread_times(self._context, repeats))
        return times.sum(axis=-1).mean(axis=1)  # type: ignore[no-any-return]

    def timeline(self, repeats: int = 10) -> list[dict[str, Any]]:
        """What every thread did when, in the run of `repeats` that took the median time.

        A row for every thread and stage: `thread`, `stage` (counted in the order of running),
        `step` (the index of its step) and that step's name, work, algorithm, layouts, output,
        `flops` and `nbytes`; in seconds from the start of the run, `start`; in seconds, `working`,
        and `waiting` for the other threads behind it.
        """
        return self._in_turn(lambda: timeline(self._context, repeats))

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

    def _check(self, inputs: Mapping[str, NDArray[np.float32]]) -> None:
        check_arrays(inputs, self._shapes, self._loaded.arrangement.unread)
        for name, shape in self._shapes.items():
            x, types = inputs[name], self._types[name]
            if x.dtype not in types:
                raise InputError(f"input {name!r} is {x.dtype}: give it as {types[0]}")
            if x.shape != shape:
                check_shape(name, x.shape, shape)
        for name, wanted in self._loaded.arrangement.indices.items():
            check_indices(name, inputs[name], wanted)
