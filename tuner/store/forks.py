"""Closes connections before this process forks; they are opened again when they are needed."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet


class Closable(Protocol):
    """An object with idle connections."""

    def close(self) -> None:
        """Close the connections."""


class Gate:
    """Excludes forks from uses of connections. Several uses may overlap.

    A fork waits for uses that have begun, closes all connections, and lets new uses wait. This is
    needed because a forked child does not inherit file locks, while an open connection of SQLite in
    it would rely on them. A fork does not wait for uses of its own thread.
    """

    def __init__(self) -> None:
        self._closables = WeakSet[Closable]()
        self._open()
        os.register_at_fork(
            before=self._close, after_in_parent=self._release, after_in_child=self._open
        )

    def add(self, closable: Closable) -> None:
        """Close it before every later fork."""
        self._closables.add(closable)

    def discard(self, closable: Closable) -> None:
        """Leave it open from now on."""
        self._closables.discard(closable)

    @contextmanager
    def use(self) -> Iterator[None]:
        """A block that uses connections."""
        thread = threading.get_ident()
        with self._changed:
            # A nested use must not wait, or a fork would wait for it for ever.
            self._changed.wait_for(lambda: bool(self._uses[thread]) or not self._forking)
            self._uses[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._uses[thread] -= 1
                self._changed.notify_all()

    def _open(self) -> None:
        # A child inherits the state but not the threads that used connections.
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
