"""Fast-Run for convolutional networks on CPUs: tune kernels, load networks, keep the results.

    import fastrun

    with fastrun.Database("tuned.db") as database:
        fastrun.tune("model.onnx", database, fastrun.Budget(seconds=120))
        network = fastrun.load("model.onnx", database=database)
    outputs = network.run({"input": image})

The names of `__all__` are the public interface. docs/adding.md names the points of extension: an
algorithm, a sampler, a measurer, an engine to compare with. Everything else is internal and may
change. `import fastrun` is light: a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrun import plot
    from fastrun.graph.core.errors import GraphError, InputError
    from fastrun.graph.runtime.dynamic import DynamicExecutable
    from fastrun.graph.runtime.executable import Executable
    from fastrun.kernels.core.attention import AttentionProblem
    from fastrun.kernels.core.problem import ConvProblem, ProblemError
    from fastrun.kernels.core.template import ScheduleError
    from fastrun.tuner.networks.export import export
    from fastrun.tuner.networks.load import load
    from fastrun.tuner.networks.quantise import quantise
    from fastrun.tuner.networks.tune import tune
    from fastrun.tuner.pytorch.from_torch import from_torch
    from fastrun.tuner.search.budget import Budget
    from fastrun.tuner.search.fastrun import fast_run
    from fastrun.tuner.search.options import SearchOptions
    from fastrun.tuner.store.connection import DatabaseError
    from fastrun.tuner.store.database import Database

__all__ = [
    "AttentionProblem",
    "Budget",
    "ConvProblem",
    "Database",
    "DatabaseError",
    "DynamicExecutable",
    "Executable",
    "GraphError",
    "InputError",
    "ProblemError",
    "ScheduleError",
    "SearchOptions",
    "__version__",
    "export",
    "fast_run",
    "from_torch",
    "load",
    "plot",
    "quantise",
    "tune",
]

__version__ = "0.1.0"

_HOMES = {
    "AttentionProblem": "fastrun.kernels.core.attention",
    "Budget": "fastrun.tuner.search.budget",
    "ConvProblem": "fastrun.kernels.core.problem",
    "Database": "fastrun.tuner.store.database",
    "DatabaseError": "fastrun.tuner.store.connection",
    "DynamicExecutable": "fastrun.graph.runtime.dynamic",
    "Executable": "fastrun.graph.runtime.executable",
    "GraphError": "fastrun.graph.core.errors",
    "InputError": "fastrun.graph.core.errors",
    "ProblemError": "fastrun.kernels.core.problem",
    "ScheduleError": "fastrun.kernels.core.template",
    "SearchOptions": "fastrun.tuner.search.options",
    "export": "fastrun.tuner.networks.export",
    "fast_run": "fastrun.tuner.search.fastrun",
    "from_torch": "fastrun.tuner.pytorch.from_torch",
    "load": "fastrun.tuner.networks.load",
    "quantise": "fastrun.tuner.networks.quantise",
    "tune": "fastrun.tuner.networks.tune",
}

if not os.path.isdir(os.path.join(os.path.dirname(__file__), "kernels")):
    raise ImportError(
        "fastrun/kernels is no folder: this copy of the repository has lost its symbolic links; "
        "`git config core.symlinks true && git checkout -- fastrun` restores them"
    )


if not TYPE_CHECKING:  # so that a type checker reports misspelled names

    def __getattr__(name: str) -> Any:
        if name == "plot":
            return importlib.import_module("fastrun.plot")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
