"""Fast-Run for convolutional networks on CPUs: tune kernels, load networks, keep the results.

`import fastrun` is light: what is named here is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrun.graph.runtime.executable import Executable
    from fastrun.kernels.core.problem import ConvProblem
    from fastrun.tuner.networks.load import load
    from fastrun.tuner.search.budget import Budget
    from fastrun.tuner.search.fastrun import fast_run
    from fastrun.tuner.search.options import SearchOptions
    from fastrun.tuner.store.database import Database

__all__ = ["Budget", "ConvProblem", "Database", "Executable", "SearchOptions", "fast_run", "load"]

_HOMES = {
    "Budget": "fastrun.tuner.search.budget",
    "ConvProblem": "fastrun.kernels.core.problem",
    "Database": "fastrun.tuner.store.database",
    "Executable": "fastrun.graph.runtime.executable",
    "SearchOptions": "fastrun.tuner.search.options",
    "fast_run": "fastrun.tuner.search.fastrun",
    "load": "fastrun.tuner.networks.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
