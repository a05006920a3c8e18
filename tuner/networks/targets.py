"""What to tune, named in one word: a built-in network, an ONNX file, or a problem's text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fastrun.kernels.core.problem import ConvProblem


@dataclass(frozen=True)
class Target:
    """A name and its distinct problems, each with the number of times it occurs.

    `graph` is a network's `Graph.digest` once optimised, '' for a problem. `lacks` says why a
    network cannot be run as a whole, '' if it can.
    """

    name: str
    problems: tuple[tuple[ConvProblem, int], ...]
    graph: str = ""
    lacks: str = ""

    @property
    def is_network(self) -> bool:
        """Whether the name is that of a network, so that the sum over its problems means much."""
        return not is_problem(self.name)


def is_problem(text: str) -> bool:
    """Whether a text is, or would be, that of a problem."""
    return text.split()[:1] == ["conv"]


def read_target(text: str) -> Target:
    """The target that `text` names.

    Raises:
        ProblemError: it looks like a problem's text and is none.
        GraphError: there is no such network or file, or it cannot be used.
    """
    if is_problem(text):
        problem = ConvProblem.parse(text)
        return Target(str(problem), ((problem, 1),))
    # Reading a problem's text takes no ONNX.
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


def merged(targets: Iterable[Target]) -> list[tuple[ConvProblem, int]]:
    """The distinct problems of all targets and how often all of them together have each."""
    counts = Counter[ConvProblem]()
    for target in targets:
        for problem, count in target.problems:
            counts[problem] += count
    return list(counts.items())
