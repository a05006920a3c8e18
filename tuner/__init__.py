"""Measure, search, remember, report; load and run.

`import fastrun.tuner` is light: what is named here is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Budget": "fastrun.tuner.search.budget",
    "Database": "fastrun.tuner.store.database",
    "fast_run": "fastrun.tuner.search.fastrun",
    "load": "fastrun.tuner.networks.load",
}

__all__ = ["Budget", "Database", "fast_run", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
