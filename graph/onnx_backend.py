"""ONNX's own interface for backends: models run in this package with schedules of heuristics.

A model of a single operator, as in ONNX's conformance tests, may have weights and parameters as
inputs, and open shapes. Such a model is prepared when it first runs, and again when one of them
changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.backend.base import Backend as OnnxBackend
from onnx.backend.base import BackendRep

from fastrun.graph.core.errors import InputError, UnsupportedError
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu

Value = NDArray[Any]


class Prepared(BackendRep):
    """A model that is ready to run, with inputs and outputs in the model's order."""

    def __init__(self, model: onnx.ModelProto, threads: int) -> None:
        self._model, self._threads = model, threads
        weights = {w.name for w in model.graph.initializer}
        inputs = [v for v in model.graph.input if v.name not in weights]
        self._names = [v.name for v in inputs]
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._bound: dict[str, Value] = {}
        self._executable: Executable | None = None
        try:
            self._executable = self._load()
        except UnsupportedError:
            if not _may_be_bound(inputs):
                raise

    def run(self, inputs: Sequence[Value], **kwargs: Any) -> tuple[Any, ...]:
        """The outputs.

        Raises:
            InputError: the inputs do not fit the model.
            UnsupportedError: the model cannot be run even if only its first input is no constant.
        """
        if len(inputs) != len(self._names):
            raise InputError(f"{len(inputs)} inputs are given: the model has {len(self._names)}")
        values = {name: np.asarray(x) for name, x in zip(self._names, inputs, strict=True)}
        if self._executable and not self._bound:
            known = self._executable.inputs
            shapes = {x: value.shape for x, value in values.items() if x in known}
            if shapes != known:  # the model leaves sizes open
                self._shapes = shapes
                self._executable = self._load()
        if self._executable is None or self._is_other(values):
            self._shapes = {self._names[0]: values[self._names[0]].shape}
            self._bound = {name: values[name] for name in self._names[1:]}
            self._executable = self._load()
        given = {x: value for x, value in values.items() if x not in self._bound}
        found = self._executable.run(given)
        return tuple(found[v.name] for v in self._model.graph.output)

    def _is_other(self, values: Mapping[str, Value]) -> bool:
        """Whether the model was prepared for other shapes or constants than these inputs have."""
        return any(values[x].shape != shape for x, shape in self._shapes.items()) or any(
            values[x].dtype != old.dtype or not np.array_equal(values[x], old)
            for x, old in self._bound.items()
        )

    def _load(self) -> Executable:
        model = self._model
        if self._bound:
            model = onnx.ModelProto()
            model.CopyFrom(self._model)
            model.graph.initializer.extend(
                numpy_helper.from_array(value, name) for name, value in self._bound.items()
            )
        cpu = Cpu.host()
        graph = optimise(import_onnx(model, self._shapes))
        plan, arrangement = make_plan(graph, heuristic_choices(cpu), cpu)
        return Executable.of(arrangement, cpu, self._threads, plan)


class Backend(OnnxBackend):
    """`onnx.backend.base.Backend` on the CPU; an unsupported model raises `UnsupportedError`."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether the device is the CPU."""
        return device == "CPU"

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether all operators of the model are supported, as far as it shows without inputs.

        Raises:
            GraphError: the model contradicts itself.
        """
        try:
            cls.prepare(model, device)
        except UnsupportedError:
            return False
        return True

    @classmethod
    def prepare(
        cls, model: onnx.ModelProto, device: str = "CPU", *, threads: int = 1, **kwargs: Any
    ) -> Prepared:
        """The model, imported, optimised, planned and compiled.

        Raises:
            UnsupportedError: the model needs something this package lacks.
            GraphError: the model contradicts itself.
        """
        if not cls.supports_device(device):
            raise UnsupportedError(f"no device {device!r}: this package computes on the CPU")
        return Prepared(model, threads)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Sequence[Value],
        device: str = "CPU",
        outputs_info: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """The outputs of one operator of the opset `opset_version`, by default the newest.

        Raises:
            GraphError: as `prepare` and `Prepared.run`.
        """
        names = [x for x in node.input if x]
        if len(inputs) != len(names):
            raise InputError(f"{len(inputs)} inputs are given: the node has {len(names)}")
        described = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in zip(names, map(np.asarray, inputs), strict=True)
        ]
        outputs = [helper.make_empty_tensor_value_info(y) for y in node.output if y]
        graph = helper.make_graph([node], node.op_type, described, outputs)
        version = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
        return cls.run_model(model, inputs, device, **kwargs)


def _may_be_bound(inputs: Sequence[onnx.ValueInfoProto]) -> bool:
    """Whether the model may become supported with constant inputs or a size of the first one."""
    if not all(v.type.HasField("tensor_type") for v in inputs):
        return False
    first = inputs[0].type.tensor_type.shape.dim if inputs else ()
    return len(inputs) > 1 or any(dim.dim_value < 1 for dim in first)
