"""Measure, search, remember, report; load and run.

It offers the names of `fastrun`, each imported when it is first used.
"""

from __future__ import annotations

from typing import Any

import fastrun

__all__ = [name for name in fastrun.__all__ if name != "__version__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(fastrun, name)


def __dir__() -> list[str]:
    own = [name for name in globals() if name.startswith("__")]
    return sorted([*own, *__all__])
