"""Engines in processes of their own, as their users run them, timed in turns.

In one process engines share an allocator, libraries and cores on which the threads of another one
may still spin. Where data lie in memory also differs from process to process, and with it the time:
several processes of each engine show by how much.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from fastrun.benchmarks.race import Entry
from fastrun.tuner.measure.cores import Cores, pin

# Seconds that a process has to end.
_PATIENCE = 5.0


@contextmanager
def apart(makers: Sequence[Callable[[], Entry]], threads: int) -> Iterator[list[Entry]]:
    """The entries of these makers, each made and called in a process of its own on `threads` cores.

    A maker is pickled. A process that ends too early makes an entry that cannot be timed, or stops
    the race with an error.

    Raises:
        ConnectionError: a process ended while its engine was timed.
    """
    cores = Cores.split(threads).timing
    context = multiprocessing.get_context("spawn")
    started = list[tuple[BaseProcess, Connection]]()
    try:
        entries = []
        for maker in makers:  # one after the other: loading one disturbs the first run of another
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(
                target=_serve, args=(theirs, maker, cores), daemon=True
            )
            process.start()
            theirs.close()
            started.append((process, ours))
            entries.append(_entry(process, ours))
        yield entries
    finally:
        for _, connection in started:
            connection.close()
        for process, _ in started:
            process.join(_PATIENCE)
            process.kill()


def _entry(process: BaseProcess, connection: Connection) -> Entry:
    """What the process made, with calls that it answers."""
    try:
        entry: Entry
        entry, timed = connection.recv()
    except EOFError:
        process.join()
        return Entry("", None, note=f"its process ended with code {process.exitcode}")

    def calls(repeats: int) -> float:
        try:
            connection.send(repeats)
            return float(connection.recv())
        except (EOFError, OSError) as error:
            process.join()
            raise ConnectionError(
                f"the process of {entry.engine} ended with code {process.exitcode} as it was timed"
            ) from error

    return replace(entry, calls=calls if timed else None)


def _serve(connection: Connection, maker: Callable[[], Entry], cores: Sequence[int]) -> None:
    """Make the entry, say what it is, and time blocks of calls until the other side ends."""
    try:
        entry = maker()
        pin(cores)
        connection.send((replace(entry, calls=None), entry.calls is not None))
        while entry.calls:
            connection.send(entry.calls(connection.recv()))
    except EOFError:
        pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    # Some engines hang or crash as they are unloaded.
    os._exit(0)
