"""A connected device: its files, its system calls, the support code, and children for kernels."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

from fastrun.kernels.core.tiles import REQUEST, TILE_DATA
from fastrun.kernels.native.flat import Blob
from fastrun.tuner.device.channel import Channel, LostError, Operations
from fastrun.tuner.device.machine_code import NUMBERS
from fastrun.tuner.device.reach import Start
from fastrun.tuner.device.support import library, support

READ, WRITE, RUN = 1, 2, 4  # protections of memory
_HERE = -100  # AT_FDCWD: paths are relative to the folder of the runner
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_FOLDER = 0x200  # AT_REMOVEDIR
_SCRATCH = 1 << 20
_PART = 1 << 18  # bytes that one frame carries of a file
_LISTED = 1 << 14  # bytes of names that one frame carries of a folder
_HUGE = 2 << 20
_MADV_HUGEPAGE = 14
_CPU, _CORE, _AS = 0, 4, 9  # limits of a process, as Linux numbers them

Perform = Callable[[Operations], list[int | bytes]]
"""Performs operations, in the runner or in a child."""

PATH_AT = 0  # where a path lies in the scratch memory; files begin behind it
_DATA_AT = 4096


class Session:
    """One run of the runner, with a `folder` of its own there.

    Files are named by the hash of their content, so each is sent once. `close` removes the folder;
    those of runners that were killed are removed by the next session. `tiles` says whether its
    system lets the runner and its children use tile registers, if the processor has them.

    Raises:
        ConnectionError: the device cannot be reached.
    """

    def __init__(self, start: Start) -> None:
        self.channel: Channel = start()
        self.machine = self.channel.machine
        self._numbers = NUMBERS[self.machine]
        self._stored = set[str]()
        self.tiles = "arch_prctl" in self._numbers and not self.do("arch_prctl", REQUEST, TILE_DATA)
        self.scratch = self.map(_SCRATCH)
        self.folder = self._own_folder()
        blob = _support(self.machine)
        (address,) = self._mapped([self.put(blob.code)], [len(blob.code)], READ | RUN)
        self._functions = {name: address + at for name, at in blob.symbols.items()}

    def function(self, name: str) -> int:
        """The address of a function of the support code."""
        return self._functions[name]

    def has(self, name: str) -> bool:
        """Whether the support code has a function."""
        return name in self._functions

    def system(self, operations: Operations, name: str, *arguments: int) -> Operations:
        """Add a system call to operations."""
        return operations.call(self.channel.syscall, self._numbers[name], *arguments)

    def do(self, name: str, *arguments: int) -> int:
        """The result of a system call of the runner; -errno for an error."""
        (result,) = self.channel.own(self.system(Operations(), name, *arguments))
        return cast(int, result)

    def map(self, size: int) -> int:
        """The address of fresh memory of the runner, which children have too.

        Raises:
            MemoryError: the device has none.
        """
        return checked_address(self.do("mmap", 0, size, READ | WRITE, 34, -1, 0), size)

    def path(self, operations: Operations, path: str, at: int = PATH_AT) -> int:
        """Add a path to the scratch memory; its address."""
        operations.poke(self.scratch + at, path.encode() + b"\0")
        return self.scratch + at

    def read(self, path: str, most: int = 1 << 14) -> bytes | None:
        """A small file of the device; None if it cannot be read."""
        begun = Operations()
        where = self.path(begun, path)
        file = cast(int, self.channel.own(self.system(begun, "openat", _HERE, where, 0, 0))[0])
        if file < 0:
            return None
        read = self.system(Operations(), "read", file, self.scratch + _DATA_AT, most)
        read.peek(self.scratch + _DATA_AT, most)
        size, content, _ = self.channel.own(self.system(read, "close", file))
        return cast(bytes, content)[: cast(int, size)] if cast(int, size) >= 0 else None

    def text(self, path: str) -> str:
        """A small file of the device, stripped; '' if it cannot be read."""
        return (self.read(path) or b"").decode(errors="replace").strip()

    def put(self, content: bytes) -> str:
        """The name of the file with this content, which is sent if the device lacks it.

        Raises:
            OSError: the device cannot store it.
        """
        name = hashlib.sha256(content).hexdigest()[:32]
        if name not in self._stored:
            self._store(name, content)
        return name

    def _store(self, name: str, content: bytes) -> None:
        """Write a file under another name first, so that it appears whole."""
        begun = Operations()
        where = self.path(begun, f"{name}.new")
        (file,) = self.channel.own(self.system(begun, "openat", _HERE, where, _CREATE, 0o600))
        self._refuse(cast(int, file), "no file can be written in the folder of the runner")
        self._stored.add(name)
        for at in range(0, len(content), _PART):
            part = content[at : at + _PART]
            write = Operations().poke(self.scratch + _DATA_AT, part)
            wrote = self.system(write, "write", cast(int, file), self.scratch + _DATA_AT, len(part))
            (count,) = self.channel.own(wrote)
            self._refuse(cast(int, count), "a file of operands cannot be written")
            if count != len(part):
                raise OSError(errno.ENOSPC, "the device has no room for the operands")
        last = self.system(Operations(), "close", cast(int, file))
        final = self.path(last, name, 1024)
        where = self.path(last, f"{name}.new")
        _, renamed = self.channel.own(self.system(last, "renameat", _HERE, where, _HERE, final))
        self._refuse(cast(int, renamed), "a file cannot be renamed")

    @staticmethod
    def _refuse(result: int, what: str) -> None:
        if result < 0:
            raise OSError(-result, f"on the device {what}: {os.strerror(-result)}")

    def forget(self) -> None:
        """Remove the files of this session from the device."""
        for name in sorted(self._stored):
            self._on(name, "unlinkat")
        self._stored.clear()

    def close(self) -> None:
        """Remove the files, and end the runner."""
        try:
            self._on("..", "chdir")
            self._remove(self.folder)
        except LostError:
            pass  # the next session removes what is left
        finally:
            self.channel.close()

    def _own_folder(self) -> str:
        """Make a folder for this session and go there; remove those of runners that have ended."""
        for name in self._listed("."):
            kind, _, number = name.partition("-")
            if kind == "run" and "runner-" not in self.text(f"/proc/{number}/cmdline"):
                self._remove(name)
        folder = f"run-{self.do('getpid')}"
        self._remove(folder)
        made = self._on(folder, "mkdirat", 0o700)
        self._refuse(made, "no folder can be made beside the runner")
        self._refuse(self._on(folder, "chdir"), "the folder of the run cannot be entered")
        return folder

    def _remove(self, folder: str) -> None:
        for name in self._listed(folder):
            self._on(f"{folder}/{name}", "unlinkat")
        self._on(folder, "unlinkat", _FOLDER)

    def _listed(self, folder: str) -> list[str]:
        """The names in a folder; none if it cannot be read."""
        begun = Operations()
        where = self.path(begun, folder)
        file = cast(int, self.channel.own(self.system(begun, "openat", _HERE, where, 0, 0))[0])
        names, at, size = list[str](), self.scratch + _DATA_AT, 1
        while file >= 0 and size > 0:
            more = self.system(Operations(), "getdents64", file, at, _LISTED).peek(at, _LISTED)
            size, held = cast(tuple[int, bytes], tuple(self.channel.own(more)))
            place = 0
            while place < size:
                (length,) = struct.unpack_from("<H", held, place + 16)
                names.append(os.fsdecode(held[place + 19 : place + length].partition(b"\0")[0]))
                place += length
        self.do("close", file)
        return [name for name in names if name not in (".", "..")]

    def _on(self, path: str, call: str, *arguments: int) -> int:
        """The result of a system call on a path of the device."""
        asked = Operations()
        where = self.path(asked, path)
        given = (where,) if call == "chdir" else (_HERE, where)
        (result,) = self.channel.own(self.system(asked, call, *given, *arguments))
        return cast(int, result)

    def _mapped(self, names: Sequence[str], sizes: Sequence[int], how: int) -> list[int]:
        return mapped(self, names, sizes, [how] * len(names), self.channel.own)


class Child:
    """A process of the device in which kernels run; the one before ends.

    Raises:
        LostError: the device does not answer.
    """

    def __init__(self, session: Session, timeout: float) -> None:
        self.session, self._timeout = session, timeout
        self._memory: int | None = None
        session.channel.fork()

    def limit(self, memory: int, seconds: int) -> None:
        """Let it have so many further bytes of memory and seconds of CPU time, and leave no dump.

        Some emulators ignore the system's limits; `map` keeps to that of memory there too.
        """
        self._memory, session = memory, self.session
        asked = Operations()
        session.system(asked, "openat", _HERE, session.path(asked, "/proc/self/status"), 0, 0)
        (file,) = cast(list[int], self.ask(asked))
        at = session.scratch + _DATA_AT
        read = session.system(Operations(), "read", file, at, 4096).peek(at, 4096)
        said = cast(bytes, self.ask(session.system(read, "close", file))[1])
        found = re.search(rb"VmSize:\s+(\d+) kB", said)
        held = int(found[1]) << 10 if found else 0
        limits = ((_AS, held + memory, held + memory), (_CPU, seconds, seconds + 1), (_CORE, 0, 0))
        lowering = Operations()
        for which, soft, hard in limits:
            lowering.poke(at, words(soft, hard))
            session.system(lowering, "prlimit64", 0, which, at, 0)
        self.ask(lowering)

    def ask(self, operations: Operations, timeout: float | None = None) -> list[int | bytes]:
        """Perform operations, by default within the child's usual time; see `Channel.ask`."""
        return self.session.channel.ask(operations, timeout or self._timeout)

    def map(self, size: int) -> int:
        """The address of fresh memory at a huge page, of huge pages where there are some.

        Raises:
            MemoryError: the device has none.
        """
        if self._memory is not None and size > self._memory:
            raise MemoryError(
                f"{size >> 20} MB are needed, and {self._memory >> 20} MB are allowed"
            )
        asked = self.session.system(Operations(), "mmap", 0, size + _HUGE, READ | WRITE, 34, -1, 0)
        start = checked_address(cast(int, self.ask(asked)[0]), size)
        address = -(-start // _HUGE) * _HUGE
        self.ask(self.session.system(Operations(), "madvise", address, size, _MADV_HUGEPAGE))
        return address

    def files(
        self, names: Sequence[str], sizes: Sequence[int], protections: Sequence[int]
    ) -> list[int]:
        """The addresses of mapped files.

        Raises:
            MemoryError: the device cannot map one.
        """
        return mapped(self.session, names, sizes, protections, self.ask)


def mapped(
    session: Session,
    names: Sequence[str],
    sizes: Sequence[int],
    protections: Sequence[int],
    ask: Perform,
) -> list[int]:
    """Map files where `ask` performs operations; empty ones have the address 0."""
    opening = Operations()
    for name in names:
        where = session.path(opening, name)
        session.system(opening, "openat", _HERE, where, 0, 0)
    files = cast(list[int], ask(opening))
    mapping = Operations()
    for file, size, how in zip(files, sizes, protections, strict=True):
        session.system(mapping, "mmap", 0, max(size, 1), how, 2, file, 0)
        session.system(mapping, "close", file)
    found = cast(list[int], ask(mapping))[::2]
    return [checked_address(a, size) for a, size in zip(found, sizes, strict=True)]


def checked_address(address: int, size: int) -> int:
    """An address that a system gave.

    Raises:
        MemoryError: it is an error.
    """
    if -4096 < address < 0:
        raise MemoryError(f"the device has no memory for {size} bytes: {os.strerror(-address)}")
    return address


def words(*values: int) -> bytes:
    """Numbers as memory of the device holds them."""
    return struct.pack(f"<{len(values)}Q", *(v & (1 << 64) - 1 for v in values))


@cache
def _support(machine: str) -> Blob:
    return support(machine)


@cache
def kernel_library(machine: str) -> bytes:
    """The object that kernels of this machine are linked with."""
    return library(machine)
