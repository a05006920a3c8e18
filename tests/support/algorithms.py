"""Which problem an algorithm is tested with: some compute other element types than float32."""

from __future__ import annotations

from collections.abc import Iterable

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import KernelTemplate


def first_taken(template: KernelTemplate, texts: Iterable[str], cpu: Cpu) -> ConvProblem | None:
    """The first of these problems that the algorithm does not refuse, element types included."""
    problems = map(ConvProblem.parse, texts)
    return next((p for p in problems if template.refusal(p, cpu) is None), None)
