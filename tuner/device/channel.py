"""Frames to a runner and back, and the operations in them."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fastrun.tuner.device.runner import (
    ASK,
    CALL,
    DIED,
    DONE,
    FORK,
    GARBLED,
    LATE,
    OWN,
    PEEK,
    POKE,
    PROTOCOL,
)
from fastrun.tuner.measure.process import Died, Garbled

_WORD = (1 << 64) - 1
_CHUNK = 1 << 16  # bytes that are read or written at a time
_SLACK = 10.0  # seconds that an answer may take beside the work
_KEPT = 1 << 12  # bytes of standard error that are kept


class LostError(ConnectionError):
    """The connection to the device has ended, or the device does not answer."""


@dataclass
class Operations:
    """Operations for a runner, in order; `results` reads the answer."""

    _bytes: bytearray = field(default_factory=bytearray)
    _answers: list[int] = field(default_factory=list)  # bytes of each; -1 for a result

    def poke(self, address: int, data: bytes) -> Operations:
        """Write memory."""
        self._bytes += struct.pack("<QQQ", POKE, address, len(data))
        self._bytes += data + bytes(-len(data) % 8)
        return self

    def peek(self, address: int, size: int) -> Operations:
        """Read memory; the answer gets bytes."""
        self._bytes += struct.pack("<QQQ", PEEK, address, size)
        self._answers.append(size)
        return self

    def call(self, address: int, *arguments: int) -> Operations:
        """Call a function; the answer gets its result as a signed number."""
        given = [a & _WORD for a in arguments] + [0] * (7 - len(arguments))
        self._bytes += struct.pack("<9Q", CALL, address, *given)
        self._answers.append(-1)
        return self

    def packed(self) -> bytes:
        """The operations as the runner reads them."""
        return bytes(self._bytes)

    @property
    def room(self) -> int:
        """The bytes of the answer."""
        return sum(8 if size < 0 else -(-size // 8) * 8 for size in self._answers)

    def results(self, answer: bytes) -> list[int | bytes]:
        """A number for each call, bytes for each peek.

        Raises:
            Garbled: the answer has another size.
        """
        if len(answer) != self.room:
            raise Garbled(f"{len(answer)} bytes instead of {self.room}")
        found, at = list[int | bytes](), 0
        for size in self._answers:
            if size < 0:
                found += struct.unpack_from("<q", answer, at)
                at += 8
            else:
                found.append(answer[at : at + size])
                at += -(-size // 8) * 8
        return found


class Channel:
    """A started runner behind a pair of pipes.

    `machine` is what the runner is for: `x86_64`, `aarch64` or `riscv64`.

    Args:
        command: starts the runner, whose pipes are its standard input and output.
        patience: seconds for the runner to say hello.
        folder: where the command is started.

    Raises:
        LostError: nothing answers; the message has the last line that the command said.
        OSError: the command cannot be started.
    """

    def __init__(
        self, command: Sequence[str], machine: str, patience: float, folder: Path | None = None
    ) -> None:
        self.machine = machine
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, start_new_session=True, cwd=folder,
        )  # fmt: skip
        pipes = self._process.stdin, self._process.stdout, self._process.stderr
        self._in, self._out, self._err = (pipe.fileno() for pipe in pipes if pipe)
        for pipe in (self._in, self._out, self._err):
            os.set_blocking(pipe, False)
        self._said = b""
        try:
            hello = self._frame(time.monotonic() + patience)
            if len(hello) != 24 or struct.unpack_from("<Q", hello)[0] != PROTOCOL:
                raise LostError("what answers is no runner of this version")
        except BaseException:
            self.close()
            raise
        _, self.syscall, self.arguments = struct.unpack("<QQQ", hello)

    def own(self, operations: Operations, timeout: float = 0.0) -> list[int | bytes]:
        """Perform operations in the runner.

        Raises:
            LostError: it does not answer.
        """
        status, answer = self._exchange(OWN, operations.packed(), operations.room, timeout)
        if status != DONE:
            raise LostError("what answers is no runner of this version")
        return operations.results(answer)

    def fork(self) -> None:
        """Make a child in the place of the one before.

        Raises:
            LostError: the runner does not answer, or the device allows no more processes.
        """
        _, answer = self._exchange(FORK, b"", 8, 0.0)
        (pid,) = struct.unpack("<q", answer)
        if pid < 0:
            raise LostError(f"the device makes no process: {os.strerror(-pid)}")

    def ask(self, operations: Operations, timeout: float) -> list[int | bytes]:
        """Perform operations in the child within so many seconds.

        Raises:
            Died: the child ended.
            TimeoutError: it took longer, and has been killed.
            Garbled: it sent something else than an answer, and has been killed.
            LostError: the runner does not answer.
        """
        status, answer = self._exchange(ASK, operations.packed(), operations.room, timeout)
        if status == DONE:
            return operations.results(answer)
        if status == DIED:
            (how,) = struct.unpack("<q", answer)
            raise Died(-(how & 0x7F) if how & 0x7F else how >> 8 & 0xFF, "")
        if status == LATE:
            raise TimeoutError(f"stopped after {timeout:.1f} s")
        raise Garbled("too many bytes" if status == GARBLED else "nothing, it is gone")

    def close(self) -> None:
        """End the runner by closing its pipe; a command that stays is killed."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()

    @property
    def pid(self) -> int:
        """The number of the process that was started here."""
        return self._process.pid

    def _exchange(self, kind: int, content: bytes, room: int, timeout: float) -> tuple[int, bytes]:
        if self._process.stdin and self._process.stdin.closed:
            raise LostError("the connection is closed")
        body = struct.pack("<QQQ", kind, int(1e3 * timeout), room) + content
        end = time.monotonic() + timeout + _SLACK + len(body) / 1e5
        self._send(struct.pack("<Q", len(body)) + body, end)
        answer = self._frame(end + room / 1e5)
        if len(answer) < 8:
            raise LostError("what answers is no runner of this version")
        return struct.unpack_from("<Q", answer)[0], answer[8:]

    def _frame(self, end: float) -> bytes:
        (size,) = struct.unpack("<Q", self._read(8, end))
        if size > 1 << 32:
            raise LostError(f"what answers is no runner{self._last_line()}")
        return self._read(size, end)

    def _read(self, size: int, end: float) -> bytes:
        got = bytearray()
        while len(got) < size:
            self._wait(self._out, select.POLLIN, end)
            part = os.read(self._out, min(size - len(got), _CHUNK))
            if not part:
                raise LostError(f"the connection ended{self._last_line()}")
            got += part
        return bytes(got)

    def _send(self, data: bytes, end: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._in, select.POLLOUT, end)
            try:
                view = view[os.write(self._in, view[:_CHUNK]) :]
            except BrokenPipeError:
                raise LostError(f"the connection ended{self._last_line()}") from None

    def _wait(self, pipe: int, what: int, end: float) -> None:
        """Wait until a pipe is ready, and meanwhile keep what the command says of errors."""
        poll = select.poll()
        poll.register(pipe, what)
        poll.register(self._err, select.POLLIN)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise LostError(f"the device does not answer{self._last_line()}")
            ready = {fd for fd, _ in poll.poll(1e3 * left)}
            if self._err in ready and not self._hear():
                poll.unregister(self._err)
            if pipe in ready:
                return

    def _hear(self) -> bytes:
        try:
            said = os.read(self._err, _CHUNK)
        except BlockingIOError:
            return b""
        self._said = (self._said + said)[-_KEPT:]
        return said

    def _last_line(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # what it says last
        while self._hear():
            pass
        lines = [line.strip() for line in self._said.decode(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        return f": {last[:200]}" if last else ""
