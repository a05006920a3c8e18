"""What has to be closed before this process forks, and is opened again by whoever needs it."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet


class Closable(Protocol):
    """Something with idle connections."""

    def close(self) -> None:
        """Close them."""


class Gate:
    """Uses go on side by side; a fork waits for those under way, closes all, and lets others wait.

    A child by fork has none of its parent's file locks, but SQLite in it believes that it has them
    while a connection is open. A use that the forking thread itself is in is not waited for.
    """

    def __init__(self) -> None:
        self._closables = WeakSet[Closable]()
        self._open()
        os.register_at_fork(
            before=self._close, after_in_parent=self._release, after_in_child=self._open
        )

    def add(self, closable: Closable) -> None:
        """Close this before every fork from now on."""
        self._closables.add(closable)

    @contextmanager
    def use(self) -> Iterator[None]:
        """A block in which connections are in use."""
        thread = threading.get_ident()
        with self._changed:
            # A use within another has to go on, or a fork would wait for it for ever.
            self._changed.wait_for(lambda: bool(self._uses[thread]) or not self._forking)
            self._uses[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._uses[thread] -= 1
                self._changed.notify_all()

    def _open(self) -> None:
        # The threads that used what a child inherits are not in it.
        self._changed = threading.Condition()
        self._uses = Counter[int]()
        self._forking = False

    def _close(self) -> None:
        self._changed.acquire()
        self._forking = True
        ours = threading.get_ident()
        self._changed.wait_for(lambda: self._uses.total() == self._uses[ours])
        for closable in self._closables:
            closable.close()

    def _release(self) -> None:
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


FORKS = Gate()
