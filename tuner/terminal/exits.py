"""The end of commands: exit codes, and one line for a mistake or Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from fastrun.tuner.measure.ulimits import small_limits

MISTAKE, INTERRUPTED = 2, 130

_EXTRAS = {
    "cmaes": "cmaes",
    "dask": "distributed",
    "distributed": "distributed",
    "optuna_dashboard": "dashboard",
}
"""Optional packages, and the extra of pyproject.toml that installs each."""


def ended(name: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    0 is success, 2 a mistake that one line explains, 130 an interruption. Defects of this program
    keep their trace.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{name}: interrupted; stored records are kept", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "fastrun":
            raise
        extra = f"[{_EXTRAS[missing]}]" if missing in _EXTRAS else ""
        print(
            f"{name}: error: {missing} is not installed for {sys.executable}: `pip install "
            f"'.{extra}'` in the clone of fastrun-toolkit installs it",
            file=sys.stderr,
        )
        return MISTAKE
    except _mistakes() as error:
        print(f"{name}: error: {_one_line(error)}", file=sys.stderr)
        return MISTAKE


def leave(code: int) -> NoReturn:
    """Exit with the code. A second SIGINT does not disturb the exit of an interrupted program."""
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _mistakes() -> tuple[type[BaseException], ...]:
    """Errors of the user or the machine. Any other error is a defect of this program."""
    from fastrun.graph.core.errors import GraphError
    from fastrun.kernels.core.problem import ProblemError
    from fastrun.kernels.core.template import ScheduleError
    from fastrun.tuner.measure.sandbox import WorkerDied
    from fastrun.tuner.records.record import RecordError
    from fastrun.tuner.search.errors import SamplerError
    from fastrun.tuner.store.database import DatabaseError

    ours = GraphError, ProblemError, ScheduleError, SamplerError, DatabaseError, RecordError
    return *ours, WorkerDied, OSError, MemoryError


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory: {error}{small_limits()}"
    return " ".join(str(error).split())
