"""What threads and forked processes share, so that neither finds it half changed.

A fork copies the memory, but only the thread that called it. A lock held by another thread stays
locked in the child, and what that thread was changing stays half changed. So either the fork waits
(`ONCE`), or the child makes the object new (`renewed_in_children`).
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

# Held while LLVM or BLAS works, and while an object is made that a process has only once. A fork
# waits for it, at most until one kernel is compiled.
ONCE = threading.RLock()


_inherited = weakref.WeakKeyDictionary[Any, Callable[[Any], None]]()


def renewed_in_children(owner: T, renew: Callable[[T], None]) -> None:
    """Call `renew` with `owner` in every process that is forked while `owner` lives.

    `renew` must leave it as new: unlocked and unused.
    """
    _inherited[owner] = renew


def once(make: Callable[[], T]) -> Callable[[], T]:
    """`functools.cache` for an object that must exist once, even if several threads ask first."""
    made = functools.cache(make)

    @functools.wraps(make)
    def get() -> T:
        with ONCE:
            return made()

    return get


def matmul(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """`a @ b`, for which a fork in another thread waits.

    BLAS allocates under a lock of its own. A child that was forked meanwhile would never get it.
    """
    with ONCE:
        product: NDArray[Any] = np.matmul(a, b)
    return product


def _renew() -> None:
    ONCE.release()
    for owner, renew in _inherited.items():
        renew(owner)


os.register_at_fork(before=ONCE.acquire, after_in_parent=ONCE.release, after_in_child=_renew)
