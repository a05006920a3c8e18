"""A network of a model that leaves sizes open: it is planned for the sizes that it is given."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.errors import GraphError, InputError
from fastrun.graph.core.model import Array, Shape
from fastrun.graph.core.sizes import Sizes, advice, sizes_text, usual_shape
from fastrun.graph.plan.plan import Plan
from fastrun.graph.runtime.context import MemoryUse
from fastrun.graph.runtime.defaults import Defaults
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.runtime.inputs import (
    by_name,
    check_arrays,
    check_shape,
    only_or_all,
    unknown_input,
)
from fastrun.graph.runtime.weights import Common
from fastrun.kernels.core.forks import renewed_in_children

Shapes = Mapping[str, Sequence[int]]

# Plans, compiles and packs a network for shapes of its inputs.
Make = Callable[[Mapping[str, Shape], Common], Executable]


class DynamicExecutable:
    """A network that takes inputs of all sizes that its model allows.

    The first run with new sizes plans the network for them, compiles what the object cache lacks,
    and packs the weights that no other sizes have packed alike. Later runs find that. The `kept`
    sizes that were used last are remembered.

    Threads may share it. Runs of the same sizes take turns, others run at the same time if they
    use one thread each; one thread plans at a time, and sizes that are there need not wait for it.

    What an `Executable` can tell (`plan`, `profile`, ...) is told for the default sizes: 1 for an
    open batch size. If others are open, ask `at` the sizes: `network.at(shapes).profile()`.
    """

    defaults: Defaults | None = None
    """As `Executable.defaults`."""

    def __init__(
        self,
        make: Make,
        inputs: Mapping[str, Sizes | None],
        outputs: Mapping[str, Sizes | None],
        unread: Iterable[str] = (),
        kept: int = 16,
    ) -> None:
        if kept < 1:
            raise ValueError(f"at least one shape must be kept, not {kept}")
        self._make, self._inputs, self._outputs = make, dict(inputs), dict(outputs)
        self._unread, self._most, self._common = tuple(unread), kept, Common()
        self._origin: DynamicExecutable | None = None
        self._there = OrderedDict[tuple[Shape, ...], Executable]()
        self._renew()
        renewed_in_children(self, DynamicExecutable._renew)

    def _renew(self) -> None:
        """Reset the locks: the threads that may have held them do not exist in a forked process."""
        self._lock, self._planning = threading.Lock(), threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        made = (self._make, self._inputs, self._outputs, self._unread, self._most)
        return type(self), made, {"defaults": self.defaults}

    @property
    def inputs(self) -> dict[str, Sizes | None]:
        """Sizes of the inputs by name, with names in the place of open sizes: (N, 3, H, W).

        None stands for any shape, which may be open too.
        """
        return dict(self._inputs)

    @property
    def outputs(self) -> dict[str, Sizes | None]:
        """Sizes of the outputs by name, as far as the model gives them; in the form of `inputs`."""
        return dict(self._outputs)

    @property
    def kept(self) -> list[dict[str, Shape]]:
        """The shapes of the inputs for which there is a plan, those used last at the end."""
        with self._lock:
            return [dict(zip(self._inputs, key, strict=True)) for key in self._there]

    @property
    def memory(self) -> MemoryUse:
        """What all kept sizes take together; weights that several of them share count once."""
        with self._lock:
            uses = [executable.memory for executable in self._there.values()]
        weights = self._common.size
        return MemoryUse(
            sum(use.arena for use in uses), weights, sum(use.workspace for use in uses)
        )

    def at(self, shapes: Shapes | None = None) -> Executable:
        """The network for inputs of these shapes, by name.

        Inputs that are left out have their default sizes: those of the model, 1 for an open batch
        size.

        Raises:
            InputError: there is no such input, it cannot have this shape, or sizes are missing.
            GraphError: the model cannot be used, at these sizes or at all.
        """
        given = {name: tuple(map(int, shape)) for name, shape in (shapes or {}).items()}
        for name in given:
            if name not in self._inputs:
                raise unknown_input(name, self._inputs)
        return self._at(tuple(given.get(name) or self._default(name) for name in self._inputs))

    def warm(self, shapes: Iterable[Shapes]) -> None:
        """Plan and compile for these shapes now, so that no later run of them has to.

        Raises:
            As `at`; ValueError: there are more shapes than are kept.
        """
        several = list(shapes)
        if len(several) > self._most:
            raise ValueError(
                f"{len(several)} shapes to warm, but only {self._most} are kept: load with "
                f"kept_shapes={len(several)}"
            )
        for one in several:
            self.at(one)

    def __call__(self, inputs: Mapping[str, Array] | Array) -> Any:
        """As `Executable.__call__`, for any legal sizes."""
        return only_or_all(self.run(inputs))

    def __repr__(self) -> str:
        inputs = ", ".join(f"{x} {sizes_text(sizes)}" for x, sizes in self._inputs.items())
        return f"<network of any size: {inputs}; {len(self._there)} of {self._most} shapes kept>"

    def run(self, inputs: Mapping[str, NDArray[np.float32]] | Array) -> dict[str, Array]:
        """The outputs by name for the inputs by name, as `Executable.run`; of any legal sizes.

        Raises:
            InputError: an input is missing or unknown, or cannot have its shape or type.
            GraphError: the model cannot be used, at these sizes or at all.
        """
        inputs = by_name(inputs, self._inputs)
        if self.defaults and (found := self.defaults.run(inputs)) is not None:
            return found
        check_arrays(inputs, self._inputs, self._unread)
        return self._at(tuple(inputs[name].shape for name in self._inputs)).run(inputs)

    def clone(self) -> DynamicExecutable:
        """The same network with activations of its own; plans and weights are shared."""
        other = DynamicExecutable(self._make, self._inputs, self._outputs, self._unread, self._most)
        other._origin, other._common, other.defaults = self, self._common, self.defaults
        return other

    @property
    def plan(self) -> Plan:
        """The plan for the default sizes."""
        return self.at().plan

    def seconds(self, repeats: int = 1) -> float:
        """As `Executable.seconds`, for the default sizes."""
        return self.at().seconds(repeats)

    def profile(self, repeats: int = 10) -> list[dict[str, Any]]:
        """As `Executable.profile`, for the default sizes."""
        return self.at().profile(repeats)

    def _at(self, key: tuple[Shape, ...]) -> Executable:
        found = self._find(key)
        if found is None:
            with self._planning:
                found = self._find(key)  # another thread may have planned it meanwhile
                if found is None:
                    found = self._new(dict(zip(self._inputs, key, strict=True)))
                    self._keep(key, found)
        return found

    def _find(self, key: tuple[Shape, ...]) -> Executable | None:
        with self._lock:
            found = self._there.get(key)
            if found is not None:
                self._there.move_to_end(key)
            return found

    def _keep(self, key: tuple[Shape, ...], made: Executable) -> None:
        with self._lock:
            self._there[key] = made
            while len(self._there) > self._most:
                self._there.popitem(last=False)

    def _new(self, shapes: Mapping[str, Shape]) -> Executable:
        for name, shape in shapes.items():
            check_shape(name, shape, self._inputs[name])
        if self._origin:
            return self._origin.at(shapes).clone()
        try:
            return self._make(shapes, self._common)
        except GraphError as error:
            text = ", ".join(f"{x} of {'x'.join(map(str, shape))}" for x, shape in shapes.items())
            raise type(error)(f"{error} (with {text})") from error

    def _default(self, name: str) -> Shape:
        """An input's shape if at most its batch size is open."""
        sizes = self._inputs[name]
        shape = usual_shape(sizes)
        if shape is None:
            raise InputError(
                f"sizes of input {name!r} are open, {sizes_text(sizes)}: give {advice(name, sizes)}"
            )
        return shape
