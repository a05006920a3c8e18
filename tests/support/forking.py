"""Children by fork, and children that must end."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable

HANG_SECONDS = 120.0


def child(work: Callable[[], bool]) -> int:
    """The process id of a forked child that ends with 0 where `work` says so."""
    pid = os.fork()
    if pid:
        return pid
    code = 2
    try:
        code = 0 if work() else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def interruptible() -> None:
    """For a child before it executes a program: SIGINT interrupts it.

    What a shell starts in the background ignores SIGINT, and so do its children.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def code(pid: int) -> int:
    """The child's exit code; a signal's number, negative, where it was killed as it hung."""
    end = time.monotonic() + HANG_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
