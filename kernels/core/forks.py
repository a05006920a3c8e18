"""What threads and forked processes share, and how neither finds it half done.

A fork copies memory as it is and none of the threads but its caller's: a lock that another one
held stays locked in the child, and what it was changing stays half changed. So either the fork
waits (`ONCE`), or the child begins anew (`renewed_in_children`).
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# Held around LLVM, and while something is made that a process has once. Forks wait for it, which
# may take as long as one kernel compiles.
ONCE = threading.RLock()


_inherited = weakref.WeakKeyDictionary[Any, Callable[[Any], None]]()


def renewed_in_children(owner: T, renew: Callable[[T], None]) -> None:
    """Call `renew` with `owner` in every process that is forked while it lives.

    That makes it as new: unlocked, and in the middle of nothing.
    """
    _inherited[owner] = renew


def once(make: Callable[[], T]) -> Callable[[], T]:
    """`functools.cache` for what must exist once, however many threads are the first to ask."""
    made = functools.cache(make)

    @functools.wraps(make)
    def get() -> T:
        with ONCE:
            return made()

    return get


def _renew() -> None:
    ONCE.release()
    for owner, renew in _inherited.items():
        renew(owner)


os.register_at_fork(before=ONCE.acquire, after_in_parent=ONCE.release, after_in_child=_renew)
