"""The values of a model while it is read: what is known of each."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper

from fastrun.graph.core.errors import GraphError, ModelFileError, UnsupportedError
from fastrun.graph.core.model import Array, Shape, Tensor, unused
from fastrun.kernels.core.cgroup import usable_memory

# Elements. Larger tensors come from damaged files, and overflow in ONNX's own inference.
LARGEST_TENSOR = 2**40


class Values:
    """What is known so far of the values of a model, by their names.

    `tensors` has shape and type of those whose shape is complete, `constants` has those that
    depend on no input. `known` are those that are there already; `read` are those that something
    reads, also later.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, Array] = {}
        self.known: set[str] = set()
        self.read: set[str] = set()
        self._types: dict[str, onnx.TypeProto] = {}
        self._names: set[str] = set()  # also the model's later ones
        self._computed = 0  # bytes of constants

    def reserve(self, names: Iterable[str]) -> None:
        """Give none of these names to a new value."""
        self._names.update(names)

    def fresh(self, name: str) -> str:
        """A name like `name` that no value has."""
        free = unused(name, self._names)
        self._names.add(free)
        return free

    def define(self, name: str) -> None:
        """The value is there from now on.

        Raises:
            GraphError: it is there already.
        """
        if not isinstance(name, str):
            raise ModelFileError(f"the model is damaged: {name!r} is not a name")
        if name in self.known:
            raise GraphError(f"the model has two values called {name!r}: it is damaged")
        self.known.add(name)

    def constant(self, like: str, values: Array) -> str:
        """Add a constant. Returns its name."""
        name = self.fresh(f"{like}.constant")
        self.constants[name] = values
        self.known.add(name)
        return name

    def are_constant(self, names: Iterable[str]) -> bool:
        """Whether no value depends on inputs; "" is none."""
        return all(x in self.constants for x in names if x)

    def shape(self, name: str) -> Shape | None:
        """The shape of a value, if it is known."""
        if name in self.constants:
            return self.constants[name].shape
        return self.tensors[name].shape if name in self.tensors else None

    def type(self, name: str) -> onnx.TypeProto:
        """The type of a value as ONNX describes it; empty if it is not known."""
        if name in self.constants:
            return type_of(self.constants[name])
        return self._types.get(name, onnx.TypeProto())

    def set_type(self, name: str, described: onnx.TypeProto) -> None:
        """Keep the type of a value as inference gives it; as a tensor if its shape is complete.

        Raises:
            GraphError: there is no such type or shape.
            UnsupportedError: the memory cannot hold the value.
        """
        self._types[name] = described
        tensor = described.tensor_type
        if tensor.elem_type and tensor.HasField("shape"):
            sizes = [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value")]
            if math.prod(map(abs, sizes)) > LARGEST_TENSOR or min(sizes, default=0) < 0:
                raise GraphError(f"{name!r} cannot have the shape {tuple(sizes)}")
            if len(sizes) == len(tensor.shape.dim):
                if tensor.elem_type not in onnx.TensorProto.DataType.values():
                    raise GraphError(f"{name!r} has an unknown type, {tensor.elem_type}")
                dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
                known = self.tensors[name] = Tensor(tuple(sizes), dtype)
                _check_memory(name, known, known.nbytes)

    def set_tensor(self, name: str, tensor: Tensor) -> None:
        """As `set_type`, of a known shape."""
        self.set_type(name, type_of(tensor))

    def check_size(self, names: Iterable[str]) -> None:
        """Refuse constants that would fill the memory, together with earlier ones.

        Raises:
            UnsupportedError: they would.
        """
        for name in names:
            if tensor := self.tensors.get(name):
                self._computed += tensor.nbytes
                _check_memory(name, tensor, self._computed)


def _check_memory(name: str, tensor: Tensor, taken: int) -> None:
    """Refuse `taken` bytes above a quarter of the memory: a run holds input and output twice."""
    if taken > usable_memory() // 4:
        raise UnsupportedError(
            f"{name!r} ({tensor}) is too large for the memory that this process may use"
        )


def type_of(values: Array | Tensor) -> onnx.TypeProto:
    """The type of an array or tensor as ONNX describes it."""
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    return helper.make_tensor_type_proto(kind, values.shape)
