"""Targets of tuning by their texts: a built-in network, an ONNX file, or a problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.rounding import Roundings, no_rounding

Name = str | Path | ConvProblem
Targets = Name | Sequence[Name]
"""One or several: built-in networks, ONNX files, problems or their texts."""


@dataclass(frozen=True)
class Target:
    """A name and its distinct problems, each with its number of occurrences.

    `graph` is the `Graph.digest` of the optimised network, '' for a problem. `lacks` is the reason
    why a network cannot be run as a whole, '' if it can.
    """

    name: str
    problems: tuple[tuple[ConvProblem, int], ...]
    graph: str = ""
    lacks: str = ""

    @property
    def is_network(self) -> bool:
        """Whether the target is a network, so that sums over its problems make sense."""
        return not is_problem(self.name)


def is_problem(text: str) -> bool:
    """Whether a text begins like that of a problem."""
    return text.split()[:1] == ["conv"]


def read_target(text: str) -> Target:
    """The target of a text.

    Raises:
        ProblemError: it begins like the text of a problem, but is none.
        GraphError: there is no such network or file, or it cannot be used.
    """
    if is_problem(text):
        problem = ConvProblem.parse(text)
        return Target(str(problem), ((problem, 1),))
    # A problem does not need ONNX.
    from fastrun.graph.core.errors import UnsupportedError
    from fastrun.graph.core.problems import to_tune
    from fastrun.graph.networks import load_network
    from fastrun.graph.passes.pipeline import optimise

    graph = optimise(load_network(text))
    problems = tuple((p, count) for p, count, _ in to_tune(graph))
    try:
        graph.check_supported()
    except UnsupportedError as error:
        return Target(text, problems, graph.digest, str(error))
    return Target(text, problems, graph.digest)


def read_targets(targets: Targets) -> list[Target]:
    """All targets that are named.

    Raises:
        As `read_target`.
    """
    names = [targets] if isinstance(targets, Name) else targets
    return [read_target(str(name)) for name in names]


def merged(
    targets: Iterable[Target], rounded: Roundings = no_rounding
) -> list[tuple[ConvProblem, int]]:
    """The distinct problems of all targets, each with its number of occurrences in all of them.

    Behind those of networks come the same with their weights `rounded`, as far as they may be.
    """
    counts = Counter[ConvProblem]()
    for target in targets:
        for problem, count in target.problems:
            for types in ("", *rounded(problem)) if target.is_network else ("",):
                counts[replace(problem, types=types) if types else problem] += count
    return list(counts.items())
