"""How worker processes start: fresh, and without the program that started them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _no_program():
            return SpawnProcess._Popen(process_obj)


class Spawn(SpawnContext):
    """The spawn method of `multiprocessing`, without a second run of the main module.

    Workers need nothing of it; to import a script costs each of them as long as the script takes,
    and one that tunes as soon as it is imported would do so in every worker.
    """

    Process = _Process


@contextmanager
def _no_program() -> Iterator[None]:
    """Within, the main module looks like that of an interactive session, which has no file."""
    program: Any = sys.modules["__main__"].__dict__
    hidden = {name: program.pop(name) for name in ("__file__", "__spec__") if name in program}
    program["__spec__"] = None
    try:
        yield
    finally:
        program.update(hidden)
