"""What building a task gives: a program, its algorithm's name, and the constants it reads."""

from __future__ import annotations

from dataclasses import dataclass

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.program import Program


@dataclass(frozen=True)
class Built:
    """A program and its operands that are constant, None for an operand that it does not have.

    `weights` are as the graph has them; the program packs them. `bias` is flat.
    """

    program: Program
    algorithm: str
    weights: Array | None = None
    bias: Array | None = None


def constant(graph: Graph, task: Task, index: int) -> Array:
    """The value of an input that a kernel needs as a constant.

    Raises:
        UnsupportedError: the input is not constant.
    """
    name = task.node.input(index)
    if name not in graph.constants:
        raise UnsupportedError(
            f"node {task.node.label}: {name!r} is computed or an input; "
            "export the model with constant weights"
        )
    return graph.constants[name]
