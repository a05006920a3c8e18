"""How often a network is right: tasks with known answers that need no internet.

Each file of `NAMES` is one task: a network, data to calibrate with, and samples to test with, whose
seeds or pictures are others. `score` counts the right answers and compares with float32.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Protocol, cast

from fastrun.benchmarks.accuracy.task import Task
from fastrun.benchmarks.accuracy.untrained import untrained
from fastrun.graph import zoo

NAMES = ("ocr", "angle", "photos", "digits")


class TaskFile(Protocol):
    """The interface of the files of `NAMES`."""

    @property
    def packages(self) -> Sequence[str]:
        """The Python packages that it needs besides those of fastrun."""

    def load(self) -> Task:
        """The task with its network."""


def task(name: str) -> Task:
    """A task of `NAMES`, or a built-in network of random weights, which has no answers.

    Raises:
        ModuleNotFoundError: a package that the task needs is missing.
        GraphError: there is neither a task nor a network of this name.
    """
    return _file(name).load() if name in NAMES else untrained(name)


def missing(name: str) -> str | None:
    """The reason why a task cannot be used here; None if it can."""
    if name in zoo.NAMES:
        return None
    absent = [p for p in _file(name).packages if importlib.util.find_spec(p) is None]
    return f"{absent[0]} is not installed: pip install '.[accuracy]'" if absent else None


def _file(name: str) -> TaskFile:
    return cast(TaskFile, importlib.import_module(f"fastrun.benchmarks.accuracy.{name}"))
