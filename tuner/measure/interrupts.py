"""Ctrl-C ends a run in order; further ones do not disturb that."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# From an interrupt that was lost until it comes again.
_AGAIN_SECONDS = 0.05


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Only the first SIGINT in this block raises KeyboardInterrupt, so that clean-up is completed.

    `timeout -s INT` sends two at once. Python drops what is raised in a destructor or in a callback
    of the garbage collector: an interrupt that comes at such a moment is raised again after it.
    This does nothing in inner blocks, in other threads, and in programs with their own handler.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted, tell = False, sys.unraisablehook
    main = threading.main_thread().ident or 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    def dropped(told: Any) -> None:
        nonlocal interrupted
        if told.exc_type is not KeyboardInterrupt:
            tell(told)
            return
        interrupted = False
        again = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (main, signal.SIGINT))
        again.daemon = True
        again.start()

    signal.signal(signal.SIGINT, handle)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = tell
        signal.signal(signal.SIGINT, signal.default_int_handler)
