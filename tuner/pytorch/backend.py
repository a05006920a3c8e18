"""The backend `fastrun` of `torch.compile`: graphs of PyTorch run by plans, or else as before.

PyTorch finds it by the entry point `torch_dynamo_backends` of pyproject.toml.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.runtime.dynamic import DynamicExecutable
from fastrun.graph.runtime.executable import Executable
from fastrun.tuner.networks.load import load
from fastrun.tuner.pytorch.conversion import Tensors, converted
from fastrun.tuner.pytorch.graphs import (
    Inference,
    Roles,
    array_of,
    name_of,
    result_types,
    tensor_of,
)
from fastrun.tuner.records.affinity import thread_number

# How often a graph follows a change of its weights.
MOST_CHANGES = 3

OPTIONS = ("threads", "database", "policy", "max_error", "max_workspace", "seconds")


def backend(
    module: fx.GraphModule,
    examples: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """What `torch.compile(module, backend="fastrun", options={...})` runs for a graph.

    The options are those of `fastrun.load`: `threads` (by default those of PyTorch, as far as this
    process has cores), `database`, `policy`, `max_error`, `max_workspace` and `seconds`.

    Graphs run for inference only, on the CPU. PyTorch itself runs any other graph, and one warning
    says why: one that needs gradients (call it in `torch.no_grad()`), one in training, one with an
    operator that this package lacks. The first call of a shape makes its network. If weights
    change, the networks are made again.

    Raises:
        TypeError: there is no such option.
    """
    given = {"threads": min(torch.get_num_threads(), thread_number("auto")), **(options or {})}
    if strange := given.keys() - {*OPTIONS}:
        raise TypeError(
            f"the backend fastrun has no option {min(strange)!r}: there are {', '.join(OPTIONS)}"
        )
    name = name_of(module)
    try:
        roles, types = _roles(module.graph, examples), result_types(module.graph)
        return _Compiled(module, roles, types, name, given)
    except UnsupportedError as error:
        _say(name, error)
        return module.forward  # type: ignore[no-any-return]


def _roles(graph: fx.Graph, examples: Sequence[Any]) -> Roles:
    """The roles of a graph's arguments, if it can run here."""
    tensors = [x for x in examples if isinstance(x, torch.Tensor)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise UnsupportedError(
            "it needs gradients, and networks only run for inference here: call it in "
            "torch.no_grad() or torch.inference_mode()"
        )
    if away := [x.device.type for x in tensors if x.device.type != "cpu"]:
        raise UnsupportedError(f"it is on the device {away[0]}, not on the CPU")
    return Roles.of(graph)


def _say(name: str, error: Exception) -> None:
    """Warn that PyTorch runs a graph."""
    warnings.warn(f"fastrun leaves {name} to PyTorch: {error}", stacklevel=2)


class _Compiled:
    """A graph and its network, which is made at the first call."""

    def __init__(
        self,
        module: fx.GraphModule,
        roles: Roles,
        types: Sequence[torch.dtype],
        name: str,
        options: Mapping[str, Any],
    ) -> None:
        self._module, self._roles, self._name, self._options = module, roles, name, options
        self._types = types
        self._inputs: Sequence[str] = ()
        self._outputs: Sequence[str] = ()
        self._network: Executable | DynamicExecutable | None = None
        self._stamp: Sequence[int] = ()
        self._changes = 0
        self._left = False

    def __call__(self, *arguments: Any) -> Any:
        roles = self._roles
        inputs = tuple(arguments[i] for i in roles.inputs)
        if not self._left:
            try:
                return self._run(inputs, [arguments[i] for i in roles.weights])
            except GraphError as error:
                _say(self._name, error)
                self._left, self._network = True, None
        return self._module.forward(*arguments)

    def _run(self, inputs: Tensors, weights: Sequence[torch.Tensor]) -> Tensors:
        stamp = [w.data_ptr() for w in weights]
        stamp += [0 if w.is_inference() else w._version for w in weights]
        if stamp != self._stamp or self._network is None:
            self._load(inputs, weights, stamp)
        assert self._network is not None
        given = zip(self._inputs, inputs, strict=True)
        results = self._network.run({name: array_of(x) for name, x in given})
        found = zip(self._outputs, self._types, strict=True)
        # The exporter says that the largest of halves are float32.
        return tuple(tensor_of(results[name]).to(dtype) for name, dtype in found)

    def _load(self, inputs: Tensors, weights: Sequence[torch.Tensor], stamp: Sequence[int]) -> None:
        """Make the network, again if the weights are no longer what it was made of."""
        self._changes += self._network is not None
        if self._changes > MOST_CHANGES:
            raise UnsupportedError("its weights keep changing")
        inference = Inference(self._module, self._roles, weights)
        model = converted(inference, inputs, self._roles.dynamic, self._name)
        self._inputs, self._outputs = model.inputs, model.outputs
        self._network, self._stamp = load(model, **self._options), stamp
