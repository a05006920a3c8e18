"""Targets of tuning by their texts: a built-in network, an ONNX file, or a problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastrun.kernels.core.attention import Problem, parse_problem
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.rounding import Roundings, no_rounding

Name = str | Path | Problem
Targets = Name | Sequence[Name]
"""One or several: built-in networks, ONNX files, problems or their texts."""

Shapes = Mapping[str, Sequence[int]]
"""Shapes of a network's inputs by name."""


@dataclass(frozen=True)
class Target:
    """A name and its distinct problems, each with its number of occurrences.

    `graph` is the `Graph.digest` of the optimised network, '' for a problem. `lacks` is the reason
    why a network cannot be run as a whole, '' if it can. `shapes` are those given for its inputs.
    """

    name: str
    problems: tuple[tuple[Problem, int], ...]
    graph: str = ""
    lacks: str = ""
    shapes: Shapes = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name with the shapes that were given."""
        return self._at_sizes(self.name)

    @property
    def title_of_file(self) -> str:
        """The title without folders, for pages that others read."""
        return self._at_sizes(Path(self.name).name if self.is_network else self.name)

    def _at_sizes(self, name: str) -> str:
        sizes = ", ".join("x".join(map(str, shape)) for shape in self.shapes.values())
        return f"{name} at {sizes}" if sizes else name

    @property
    def is_network(self) -> bool:
        """Whether the target is a network, so that sums over its problems make sense."""
        return not is_problem(self.name)


def is_problem(text: str) -> bool:
    """Whether a text begins like that of a problem."""
    return text.split()[:1] in (["conv"], ["matmul"], ["attention"])


def read_target(text: str, shapes: Shapes | None = None) -> Target:
    """The target of a text. `shapes` gives or overrides the shapes of a network's inputs.

    Raises:
        ProblemError: it begins like the text of a problem, but is none.
        GraphError: there is no such network or file, or it cannot be used.
    """
    if is_problem(text):
        problem = parse_problem(text)
        return Target(str(problem), ((problem, 1),))
    # A problem does not need ONNX.
    from fastrun.graph.core.errors import UnsupportedError
    from fastrun.graph.core.problems import to_tune
    from fastrun.graph.networks import load_network
    from fastrun.graph.passes.pipeline import optimise

    given = shapes or {}
    graph = optimise(load_network(text, given))
    problems = tuple((p, count) for p, count, _ in to_tune(graph))
    try:
        graph.check_supported()
    except UnsupportedError as error:
        return Target(text, problems, graph.digest, str(error), given)
    return Target(text, problems, graph.digest, shapes=given)


def read_targets(targets: Targets, shapes: Shapes | None = None) -> list[Target]:
    """All targets that are named, the networks with inputs of these `shapes`.

    Raises:
        As `read_target`.
    """
    names = [targets] if isinstance(targets, Name) else targets
    return [read_target(str(name), shapes) for name in names]


def merged(
    targets: Iterable[Target], rounded: Roundings = no_rounding
) -> list[tuple[Problem, int]]:
    """The distinct problems of all targets, each with its number of occurrences in all of them.

    Behind those of networks come the same with their weights `rounded`, as far as they may be.
    """
    counts = Counter[Problem]()
    for target in targets:
        for problem, count in target.problems:
            counts[problem] += count
            if target.is_network and isinstance(problem, ConvProblem):
                for types in rounded(problem):
                    counts[replace(problem, types=types)] += count
    return list(counts.items())
