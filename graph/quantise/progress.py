"""How steps that take long say what they are doing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], object]
"""Is told what is done now, how many parts of it are done, and of how many."""


def silent(doing: str, done: int, of: int) -> None:
    """Is told of progress and says nothing."""
