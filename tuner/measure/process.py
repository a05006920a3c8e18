"""A child process that does work and may die or send garbage; time and answers are limited.

It needs nothing from the calling program, which may be a daemon, a thread, or a script without a
main guard.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import json
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fastrun.tuner.measure.child import FRAME
from fastrun.tuner.measure.plain import PlainError, from_plain

T = TypeVar("T")

_LONGEST = 1 << 28  # bytes of an answer, at most
_KEPT = 1 << 12  # bytes of standard error that are kept
_CHUNK = 1 << 16  # bytes that are read or written at a time
# Time in which the process waits for a core does not count, up to this many times the limit.
_LOADED = 20
_EXIT_SECONDS = 1.0  # for a process to end after its pipe has closed
_RAISED = tuple[list[str], list[str | int | None], str]

_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from fastrun.tuner.measure.child import main; main()"
)


class Died(RuntimeError):
    """The process ended without an answer, by a signal if `code` is negative.

    `said` is the last line of its standard error.
    """

    def __init__(self, code: int, said: str) -> None:
        self.code, self.said = code, said
        signals = {-s: f"killed by {s.name}" for s in signal.Signals}
        other = f"killed by signal {-code}" if code < 0 else f"ended its process with code {code}"
        super().__init__(signals.get(code, other))


class Garbled(RuntimeError):
    """The process sent something else than an answer."""

    def __init__(self, what: object) -> None:
        super().__init__(f"said something else than a result: {what}")


class Process:
    """A child that answers one request after the other.

    After any error other than an exception of the work it has been killed; `is_alive` is then
    False. `answered` is the number of requests it has answered.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self) -> None:
        # Ctrl-C goes to the whole group of processes, but the parent alone ends a run. The child
        # inherits the blocked signal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _BOOT],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            )  # fmt: skip
        except OSError as error:
            said = f"no process can be started: {error.strerror}"
            raise OSError(error.errno, said) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        child = self._child
        self._pipes = [pipe for pipe in (child.stdin, child.stdout, child.stderr) if pipe]
        self._requests, self._answers, self._errors = (pipe.fileno() for pipe in self._pipes)
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
        self._unsent = json.dumps(sys.path).encode() + b"\n"
        self._number = itertools.count(int.from_bytes(os.urandom(4), "little"))
        self._hears, self._said = True, b""
        self.is_alive, self.answered = True, 0

    @property
    def pid(self) -> int:
        """The process's number, as long as it lives."""
        return self._child.pid

    def call(
        self,
        work: Callable[..., T],
        arguments: tuple[Any, ...],
        timeout: float,
        known: Mapping[str, type[Exception]] | None = None,
    ) -> T:
        """Call `work`, a module's function whose annotations give the type of its result.

        Seconds in which the process waits for a core do not count, within bounds. An exception of
        `work` is raised here too: as its own type if that is built in or among `known` by name,
        else as its first base class that is.

        Raises:
            TimeoutError: it took more than `timeout` seconds.
            Died: the process ended.
            Garbled: the answer is none.
        """
        number = next(self._number)
        request = pickle.dumps((work, arguments))
        self._unsent += FRAME.pack(number, len(request)) + request
        try:
            answer = self._exchange(number, timeout)
            self.answered += 1
            if "value" in answer:
                kind = typing.get_type_hints(work)["return"]
                return typing.cast(T, from_plain(kind, answer["value"]))
            names, given, trace = from_plain(_RAISED, answer.get("raised"))
        except PlainError as error:
            self.kill()
            raise Garbled(error) from None
        except BaseException:
            self.kill()
            raise
        raise _exception(names, given, trace, known or {})

    def is_fit(self) -> bool:
        """Whether it lives and has sent nothing without a request."""
        return self._child.poll() is None and not _readable(self._answers)

    def end(self) -> None:
        """Kill it, from any thread; a waiting `call` then raises `Died`."""
        self._child.kill()

    def kill(self) -> None:
        """Kill it and close its pipes; no other thread may be waiting for an answer."""
        self.is_alive = False
        self._child.kill()
        self._child.wait()
        for pipe in self._pipes:
            pipe.close()

    def _exchange(self, number: int, timeout: float) -> dict[str, Any]:
        """Send the request and read the whole answer."""
        clock, received, size = _Clock(self.pid, timeout), bytearray(), FRAME.size
        while len(received) < size:
            ready = self._wait(clock.left())
            if self._requests in ready:
                self._send()
            if self._errors in ready:
                self._listen()
            if self._answers in ready:
                chunk = os.read(self._answers, min(_CHUNK, size - len(received)))
                if not chunk:
                    raise self._death()
                received += chunk
                if len(received) == size == FRAME.size:
                    echo, length = FRAME.unpack(received)
                    if echo != number or not 0 < length <= _LONGEST:
                        raise Garbled("no frame of ours")
                    size += length
        if _readable(self._answers):
            raise Garbled("more than an answer")
        try:
            answer = json.loads(received[FRAME.size :])
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise Garbled("no JSON of ours")
        return answer

    def _wait(self, seconds: float) -> set[int]:
        """The pipes that can be read or written, after `seconds` at most."""
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        if self._hears:
            poll.register(self._errors, select.POLLIN)
        if self._unsent:
            poll.register(self._requests, select.POLLOUT)
        return {fd for fd, _ in poll.poll(math.ceil(1000 * seconds))}

    def _send(self) -> None:
        try:
            sent = os.write(self._requests, self._unsent[:_CHUNK])
        except BrokenPipeError:  # the process has stopped reading and is about to end
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]

    def _listen(self) -> None:
        """Read standard error and keep its end."""
        chunk = os.read(self._errors, _CHUNK)
        self._hears = bool(chunk)
        self._said = (self._said + chunk)[-_KEPT:]

    def _death(self) -> Exception:
        """The reason why there will be no answer."""
        try:
            code = self._child.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return Garbled("it closed its pipe")
        while self._hears and _readable(self._errors):
            self._listen()
        return Died(code, _last_line(self._said))


class _Clock:
    """Counts down a limit in seconds, without the time in which the process waits for a core."""

    def __init__(self, pid: int, limit: float) -> None:
        self._file, self._limit = Path(f"/proc/{pid}/schedstat"), limit
        self._begin, self._waited = time.monotonic(), self._waits()

    def left(self) -> float:
        """Seconds left.

        Raises:
            TimeoutError: none are left.
        """
        spent = time.monotonic() - self._begin
        if spent >= self._limit:
            spent -= min(self._waits() - self._waited, (_LOADED - 1) * self._limit)
        if spent >= self._limit:
            raise TimeoutError
        return self._limit - spent

    def _waits(self) -> float:
        try:
            return 1e-9 * int(self._file.read_text().split()[1])
        except (OSError, IndexError):  # it has ended, or the system does not count
            return 0.0


def _exception(
    names: Sequence[str],
    arguments: Sequence[str | int | None],
    trace: str,
    known: Mapping[str, type[Exception]],
) -> Exception:
    for name in names:
        kind = known.get(name) or getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(TypeError):  # some need other arguments
                error = kind(*arguments)
                error.add_note(trace)
                return error
    return RuntimeError(trace)


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "".join(c for c in last if c.isprintable())[:200]
