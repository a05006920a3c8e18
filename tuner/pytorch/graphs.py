"""What `torch.compile` hands to a backend: which arguments are weights, inputs and sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim

from fastrun.graph.core.errors import UnsupportedError


@dataclass(frozen=True)
class Roles:
    """The positions of a graph's arguments by their roles.

    `sizes` has, for every argument that is a size, the number of the input and its axis that have
    this size. `open` has the axes of each input that differ from call to call.
    """

    weights: tuple[int, ...]
    inputs: tuple[int, ...]
    sizes: dict[int, tuple[int, int]]
    open: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, graph: fx.Graph) -> Roles:
        """The roles of a graph's placeholders.

        Raises:
            UnsupportedError: an argument is neither a tensor nor the size of one.
        """
        nodes = [node for node in graph.nodes if node.op == "placeholder"]
        values = {i: node.meta.get("example_value") for i, node in enumerate(nodes)}
        about = enumerate(node.meta.get("tensor_dict", {}) for node in nodes)
        kept = {i for i, known in about if "_dynamo_static_input_type" in known}
        inputs = [i for i, x in values.items() if isinstance(x, torch.Tensor) and i not in kept]
        places = {
            str(size): (number, axis)
            for number, i in reversed([*enumerate(inputs)])
            for axis, size in enumerate(values[i].shape)
        }
        sizes = {}
        for i, x in values.items():
            if i not in kept and i not in inputs:
                if not isinstance(x, torch.SymInt) or str(x) not in places:
                    kind = type(x).__name__
                    raise UnsupportedError(f"it takes a {kind} that is no size of an input")
                sizes[i] = places[str(x)]
        changing = [
            tuple(axis for axis, n in enumerate(values[i].shape) if isinstance(n, torch.SymInt))
            for i in inputs
        ]
        return cls(tuple(sorted(kept)), tuple(inputs), sizes, tuple(changing))

    @property
    def dynamic(self) -> Any:
        """The open sizes of `forward` of `Inference`, as `torch.export.export` takes them."""
        if not any(self.open):
            return None
        return {"inputs": tuple(dict.fromkeys(axes, Dim.DYNAMIC) for axes in self.open)}


class Inference(nn.Module):
    """A graph with its weights inside: a module that takes the inputs alone."""

    def __init__(
        self, graph: fx.GraphModule, roles: Roles, weights: Sequence[torch.Tensor]
    ) -> None:
        super().__init__()
        self._graph, self._roles = graph, roles
        for i, weight in zip(roles.weights, weights, strict=True):
            self.register_buffer(f"weight{i}", weight.detach())

    def forward(self, *inputs: torch.Tensor) -> Any:
        """What the graph computes."""
        roles, arguments = self._roles, dict[int, Any]()
        arguments |= {i: getattr(self, f"weight{i}") for i in roles.weights}
        arguments |= dict(zip(roles.inputs, inputs, strict=True))
        arguments |= {i: inputs[n].shape[axis] for i, (n, axis) in roles.sizes.items()}
        return self._graph(*(arguments[i] for i in range(len(arguments))))


def result_types(graph: fx.Graph) -> list[torch.dtype]:
    """The element types of what a graph returns.

    Raises:
        UnsupportedError: it returns more than tensors.
    """
    results = next(node.args[0] for node in graph.nodes if node.op == "output")
    found = [x.meta.get("example_value") if isinstance(x, fx.Node) else x for x in results]
    if not all(isinstance(x, torch.Tensor) for x in found):
        raise UnsupportedError("it returns more than tensors")
    return [x.dtype for x in found]


def name_of(module: fx.GraphModule) -> str:
    """Where in a program the code of a graph begins, such as `the graph at resnet.py:119`."""
    traces = (node.stack_trace for node in module.graph.nodes if node.stack_trace)
    place = re.search(r'File "([^"]+)", line (\d+)', next(traces, ""))
    return f"the graph at {Path(place[1]).name}:{place[2]}" if place else "a graph"


def array_of(tensor: torch.Tensor) -> Any:
    """A numpy array on the memory of a tensor; of bfloat16, which numpy lacks, a float32 copy."""
    plain = tensor.detach()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def tensor_of(array: Any) -> torch.Tensor:
    """A tensor on the memory of a numpy array."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)
