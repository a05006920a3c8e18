"""Exported libraries executed by an emulator: loaded into a child of the runner for devices.

This takes the place of a system's loader and of its C library, so that no compiler and no files of
another architecture are needed.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fastrun.kernels.core.processors import baseline
from fastrun.kernels.native.apart import compile_all
from fastrun.kernels.native.flat import flat
from fastrun.kernels.native.relocations import MACHINES
from fastrun.tuner.device.channel import Operations
from fastrun.tuner.device.identity import auxiliary
from fastrun.tuner.device.machine_code import NUMBERS, STUBS
from fastrun.tuner.device.reach import way_to
from fastrun.tuner.device.session import READ, RUN, Child, Session
from fastrun.tuner.device.support import library

RISCV_WITH_VECTORS = "qemu-riscv64 -cpu rv64,v=true,vext_spec=v1.0"
EMULATORS = {"aarch64": "qemu-aarch64", "riscv64gcv": RISCV_WITH_VECTORS}
"""Commands that run programs of a target."""

TARGETS = [
    pytest.param(
        target,
        marks=pytest.mark.skipif(
            not shutil.which(command.split()[0]), reason=f"{command.split()[0]} is not installed"
        ),
    )
    for target, command in EMULATORS.items()
]

_EVERYTHING, _PRIVATE = READ | 2 | RUN, 34  # protections; private memory without a file
_LSEEK = {"x86_64": 8, "aarch64": 62, "riscv64": 62}
_STACK = 1 << 18
_THREAD = 0x50F00  # flags of clone: memory, files, signals and process are shared

# Functions of a C library by system calls. Nobody waits for a thread that ends.
_LIBC = """declare hidden i64 @syscall(i64, i64, i64, i64, i64, i64, i64)
declare hidden i64 @thread(i64, i64, ptr, ptr)

define i32 @open(ptr %path, i32 %flags) {
  %how = sext i32 %flags to i64
  %at = ptrtoint ptr %path to i64
  %r = call i64 @syscall(i64 OPENAT, i64 -100, i64 %at, i64 %how, i64 0, i64 0, i64 0)
  %file = trunc i64 %r to i32
  ret i32 %file
}

define i64 @lseek(i32 %file, i64 %to, i32 %from) {
  %f = sext i32 %file to i64
  %w = sext i32 %from to i64
  %r = call i64 @syscall(i64 LSEEK, i64 %f, i64 %to, i64 %w, i64 0, i64 0, i64 0)
  ret i64 %r
}

define ptr @mmap(ptr %at, i64 %size, i32 %protection, i32 %flags, i32 %file, i64 %offset) {
  %a = ptrtoint ptr %at to i64
  %p = sext i32 %protection to i64
  %l = sext i32 %flags to i64
  %f = sext i32 %file to i64
  %r = call i64 @syscall(i64 MMAP, i64 %a, i64 %size, i64 %p, i64 %l, i64 %f, i64 %offset)
  %to = inttoptr i64 %r to ptr
  ret ptr %to
}

define i32 @munmap(ptr %at, i64 %size) {
  %a = ptrtoint ptr %at to i64
  %r = call i64 @syscall(i64 MUNMAP, i64 %a, i64 %size, i64 0, i64 0, i64 0, i64 0)
  ret i32 0
}

define i32 @madvise(ptr %at, i64 %size, i32 %advice) {
  ret i32 0
}

define i32 @close(i32 %file) {
  %f = sext i32 %file to i64
  %r = call i64 @syscall(i64 CLOSE, i64 %f, i64 0, i64 0, i64 0, i64 0, i64 0)
  ret i32 0
}

define i32 @clock_gettime(i32 %clock, ptr %time) {
  %c = sext i32 %clock to i64
  %at = ptrtoint ptr %time to i64
  %r = call i64 @syscall(i64 CLOCK, i64 %c, i64 %at, i64 0, i64 0, i64 0, i64 0)
  ret i32 0
}

define i32 @sched_yield() {
  %r = call i64 @syscall(i64 YIELD, i64 0, i64 0, i64 0, i64 0, i64 0, i64 0)
  ret i32 0
}

define i64 @getauxval(i64 %kind) {
  ret i64 HWCAP
}

define i32 @pthread_create(ptr %handle, ptr %attributes, ptr %f, ptr %x) {
  %stack = call ptr @mmap(ptr null, i64 STACK, i32 3, i32 34, i32 -1, i64 0)
  %low = ptrtoint ptr %stack to i64
  %top = add i64 %low, STACK
  %r = call i64 @thread(i64 FLAGS, i64 %top, ptr %f, ptr %x)
  %failed = icmp slt i64 %r, 0
  %code = zext i1 %failed to i32
  ret i32 %code
}

define i32 @pthread_join(ptr %handle, ptr %result) {
  ret i32 0
}
"""


class Library:
    """An exported library in a child of a runner. The name of the network is `net`."""

    def __init__(self, session: Session, folder: Path) -> None:
        self._session, self._child = session, Child(session, 300.0)
        self._weights = str(folder / "net.weights").encode() + b"\0"
        data = (folder / "libnet.so").read_bytes()
        outside = self._libc()
        heads = [
            struct.unpack_from("<IIQQQQQQ", data, 64 + 56 * i)
            for i in range(struct.unpack_from("<H", data, 56)[0])
        ]
        loaded = [h for h in heads if h[0] == 1]
        size = max(h[3] + h[6] for h in loaded)
        base, image = self._room(size), bytearray(size)
        for _, _, offset, place, _, held, _, _ in loaded:
            image[place : place + held] = data[offset : offset + held]
        (dynamic,) = (h for h in heads if h[0] == 2)
        words = dict(struct.iter_unpack("<QQ", image[dynamic[3] : dynamic[3] + dynamic[5]]))
        strings, symbols, (_, count) = (
            words[5],
            words[6],
            struct.unpack_from("<II", image, words[4]),
        )
        names, self._functions = list[str](), dict[str, int]()
        for i in range(count):
            name, _, _, where, value, _ = struct.unpack_from("<IBBHQQ", image, symbols + 24 * i)
            start = strings + name
            names.append(image[start : image.index(b"\0", start)].decode())
            if where:
                self._functions[names[-1].removeprefix("net_")] = base + value
        machine = MACHINES[struct.unpack_from("<H", data, 18)[0]]
        assert struct.unpack_from("<I", data, 48)[0] == machine.flags
        for at in range(words[7], words[7] + words[8], 24):
            place, info, addend = struct.unpack_from("<QQq", image, at)
            assert info & 0xFFFFFFFF == (machine.absolute if info >> 32 else machine.relative)
            target = outside[names[info >> 32]] if info >> 32 else base + addend
            struct.pack_into("<Q", image, place, target)
        self._child.ask(Operations().poke(base, bytes(image)))

    def _libc(self) -> dict[str, int]:
        """Addresses of the functions that a library asks for."""
        machine = self._session.machine
        cpu, numbers = baseline(machine), NUMBERS[machine]
        text = f'target triple = "{cpu.triple}"\n\n{_LIBC}'
        for word, value in {
            "OPENAT": numbers["openat"], "LSEEK": _LSEEK[machine], "MMAP": numbers["mmap"],
            "MUNMAP": numbers["munmap"], "CLOSE": numbers["close"], "STACK": _STACK,
            "CLOCK": numbers["clock_gettime"], "YIELD": numbers["sched_yield"], "FLAGS": _THREAD,
            "HWCAP": auxiliary(self._session).get(16, 0),
        }.items():  # fmt: skip
            text = re.sub(rf"\b{word}\b", str(value), text)
        stubs = {name: STUBS[machine][name] for name in ("syscall", "thread")}
        blob = flat([*compile_all([(text, cpu)]), library(machine)], stubs)
        self._child = Child(self._session, 300.0)
        at = self._room(len(blob.code))
        self._child.ask(Operations().poke(at, blob.code))
        return {name: at + place for name, place in blob.symbols.items()}

    def _room(self, size: int) -> int:
        asked = self._session.system(Operations(), "mmap", 0, size, _EVERYTHING, _PRIVATE, -1, 0)
        return cast(int, self._child.ask(asked)[0])

    def call(self, function: str, *arguments: int) -> int:
        """The result of a function of the library."""
        asked = Operations().call(self._functions[function], *arguments)
        return cast(int, self._child.ask(asked)[0])

    def opened(self, threads: int = 1, isa: int = 0) -> int:
        """A context; minus the error if there is none."""
        at = self._room(4096)
        options = struct.pack("<QQIIQQQ", 48, at + 1024, threads, isa, 0, 0, 0)
        self._child.ask(Operations().poke(at, options).poke(at + 1024, self._weights))
        if error := self.call("open", at + 512, at):
            return -error
        (held,) = self._child.ask(Operations().peek(at + 512, 8))
        return int.from_bytes(cast(bytes, held), "little")

    def text(self, at: int) -> str:
        """A string of C's, of 100 characters at most."""
        (held,) = self._child.ask(Operations().peek(at, 101))
        return cast(bytes, held).partition(b"\0")[0].decode()

    def run(
        self, net: int, inputs: Sequence[np.ndarray[Any, Any]], sizes: Sequence[int]
    ) -> list[np.ndarray[Any, Any]]:
        """Outputs of so many float32 each."""
        at, places = self._room(8192), list[int]()
        for x in inputs:
            places.append(self._room(x.nbytes))
            self._child.ask(Operations().poke(places[-1], x.tobytes()))
        found = [self._room(4 * size) for size in sizes]
        lists = Operations().poke(at, struct.pack(f"<{len(places)}Q", *places))
        self._child.ask(lists.poke(at + 4096, struct.pack(f"<{len(found)}Q", *found)))
        error = self.call("run", net, at, at + 4096)
        assert not error, f"run: error {error}"
        asked = Operations()
        for place, size in zip(found, sizes, strict=True):
            asked.peek(place, 4 * size)
        return [np.frombuffer(cast(bytes, held), np.float32) for held in self._child.ask(asked)]


@contextmanager
def emulated(command: str, folder: Path) -> Iterator[Session]:
    """The runner under an emulator."""
    session = Session(way_to(f"exec:{command}", folder))
    try:
        yield session
    finally:
        session.close()
