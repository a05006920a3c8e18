"""Kernels that attack the measuring processes: by answers, signals, files and sockets."""

from __future__ import annotations

import json
import math
import os
import pickle
import platform
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fastrun.tuner.measure import confine
from fastrun.tuner.measure.child import FRAME
from fastrun.tuner.measure.job import Result
from fastrun.tuner.measure.plain import PlainError, from_plain, to_plain
from fastrun.tuner.records.record import Errors, Outcome
from tests.support.tiles import BODY, DECLARATIONS, needs_tiles
from tests.tuner.measure.test_sandbox import ENDLESS, Lab, after_naive, hostile, lab

__all__ = ["lab"]

WRITE = "declare i64 @write(i32, ptr, i64)"

needs_filters = pytest.mark.skipif(not confine.available(), reason="needs Linux's seccomp")


def text(name: str, value: bytes) -> str:
    """A constant of IR."""
    escaped = "".join(f"\\{byte:02x}" for byte in value)
    return f'@{name} = constant [{len(value)} x i8] c"{escaped}"\n'


def saying(what: bytes, end: str) -> tuple[str, str]:
    """IR that writes into the pipe of answers, and then ends in this way."""
    body = f"%r = call i64 @write(i32 1, ptr @what, i64 {len(what)})\n{end}"
    return body, text("what", what) + WRITE


class Bomb:
    """An object that runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def as_connections_send(value: object) -> bytes:
    """The frame of a pickle that `multiprocessing` reads."""
    data = pickle.dumps(value)
    return struct.pack("!i", len(data)) + data


FORGED = {
    "the beginning of a frame, then silence": (b"\1\0\0", ENDLESS),
    "the beginning of a frame, then its answer": (b"\1\0\0", "ret void"),
    "a frame too long for any memory": (FRAME.pack(1, 1 << 62), ENDLESS),
    "an empty result": (FRAME.pack(1, 12) + b'{"value":[]}', ENDLESS),
    "lines of text": (b"Hello, world!\n" * 9, "ret void"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_kernel_that_answers_in_our_place_is_ended(lab: Lab, case: str) -> None:
    result = lab.run(hostile(lab, *saying(*FORGED[case])))
    assert result.outcome in (Outcome.RUNTIME, Outcome.TIMEOUT)
    assert result.samples == ()
    assert lab.run().outcome == Outcome.CORRECT


def test_a_pickle_for_the_parent_is_never_unpickled(lab: Lab, tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "boom")
    for frame in (pickle.dumps(bomb), as_connections_send(bomb), as_connections_send((0, bomb))):
        assert lab.run(hostile(lab, *saying(frame, "ret void"))).outcome == Outcome.RUNTIME
    assert not bomb.path.exists()
    assert lab.run().outcome == Outcome.CORRECT


@pytest.mark.parametrize("to", [1, 2])
def test_a_kernel_that_never_stops_talking_is_ended(lab: Lab, to: int) -> None:
    body = f"""br label %more
    more:
    %r = call i64 @write(i32 {to}, ptr @what, i64 4096)
    br label %more"""
    result = lab.run(hostile(lab, body, text("what", b"\x1b[2J noise \n" * 400) + WRITE))
    assert result.outcome in (Outcome.RUNTIME, Outcome.TIMEOUT)
    assert "\x1b" not in result.reason
    assert lab.run().outcome == Outcome.CORRECT


def test_a_forged_answer_is_of_its_type_or_none() -> None:
    good = Result(Outcome.CORRECT, "", (1e-3, 2e-3), repeats=4, errors=Errors(1e-6, 1e-7, math.inf))
    plain = json.loads(json.dumps(to_plain([good])))
    assert from_plain(list[Result], plain) == [good]
    changes: dict[str, object] = {
        "outcome": "splendid", "samples": [1e-3, "fast"], "repeats": 1.5, "reason": 7,
        "complete": None, "errors": {"max": 0.0}, "noise": [], "seconds": {"a": 1}, "more": 1,
    }  # fmt: skip
    for name, value in changes.items():
        with pytest.raises(PlainError):
            from_plain(list[Result], [{**plain[0], name: value}])
    for data in (None, 1, "x", {}, [1], [[]], [plain], [{}]):
        with pytest.raises(PlainError):
            from_plain(list[Result], data)


FORBIDDEN = {
    "kills its parent": (
        "%p = call i32 @getppid()\n%r = call i32 @kill(i32 %p, i32 9)\nret void",
        "declare i32 @getppid()\ndeclare i32 @kill(i32, i32)",
    ),
    "kills everybody": (
        "%r = call i32 @kill(i32 -1, i32 9)\nret void",
        "declare i32 @kill(i32, i32)",
    ),
    "kills its group": (
        "%r = call i32 @kill(i32 0, i32 9)\nret void",
        "declare i32 @kill(i32, i32)",
    ),
    "traces its parent": (
        "%p = call i32 @getppid()\n"
        "%r = call i64 (i64, ...) @ptrace(i64 16, i32 %p, i64 0, i64 0)\nret void",
        "declare i32 @getppid()\ndeclare i64 @ptrace(i64, ...)",
    ),
    "opens a socket": (
        "%r = call i32 @socket(i32 2, i32 1, i32 0)\nret void",
        "declare i32 @socket(i32, i32, i32)",
    ),
    "opens a pair of sockets": (
        "%a = alloca [2 x i32]\n%r = call i32 @socketpair(i32 1, i32 1, i32 0, ptr %a)\nret void",
        "declare i32 @socketpair(i32, i32, i32, ptr)",
    ),
    "makes a file in memory": (
        "%r = call i32 @memfd_create(ptr @x, i32 0)\nret void",
        text("x", b"x\0") + "declare i32 @memfd_create(ptr, i32)",
    ),
    "leaves its session": ("%r = call i32 @setsid()\nret void", "declare i32 @setsid()"),
    "clones itself": (
        "%r = call i64 (i64, ...) @syscall(i64 CLONE, i64 17, i64 0, i64 0, i64 0)\nret void",
        "declare i64 @syscall(i64, ...)",
    ),
}


@needs_filters
@pytest.mark.parametrize("case", FORBIDDEN)
def test_a_kernel_that_reaches_out_is_killed(lab: Lab, case: str) -> None:
    body, declarations = FORBIDDEN[case]
    clone = {"x86_64": "56", "aarch64": "220"}[platform.machine()]
    result = lab.run(hostile(lab, body.replace("CLONE", clone), declarations))
    assert (result.outcome, result.reason) == (Outcome.RUNTIME, "killed by SIGSYS")
    assert lab.run().outcome == Outcome.CORRECT


@needs_filters
@pytest.mark.skipif(platform.machine() != "x86_64", reason="a trap of x86")
def test_the_calls_of_another_architecture_are_no_way_out(lab: Lab) -> None:
    code = int.from_bytes(bytes.fromhex("b814000000cd80c3"), "little")  # eax = getpid; int 0x80
    body = f"""%page = call ptr @mmap(ptr null, i64 4096, i32 7, i32 34, i32 -1, i64 0)
    store i64 {code}, ptr %page
    call void %page()
    ret void"""
    mmap = "declare ptr @mmap(ptr, i64, i32, i32, i32, i64)"
    result = lab.run(after_naive(lab, body, mmap))
    assert result.outcome == Outcome.RUNTIME
    assert lab.run().outcome == Outcome.CORRECT


@needs_filters
def test_a_kernel_opens_no_file_for_writing(lab: Lab) -> None:
    """The kernel computes correctly, and crashes if an attempt succeeds."""
    new, operand = lab.operands.folder / "filler", lab.operands.folder / "reference.npy"
    before = operand.read_bytes()
    for path, flags in (
        (new, os.O_CREAT | os.O_WRONLY),
        (operand, os.O_RDWR),
        (operand, os.O_TRUNC),
        (operand, os.O_WRONLY | os.O_APPEND),
        (lab.operands.folder, os.O_TMPFILE | os.O_RDWR),
        (Path("/proc/self/mem"), os.O_RDWR),
        (Path(f"/proc/{os.getpid()}/mem"), os.O_RDWR),
        (Path(f"/proc/{os.getpid()}/oom_score_adj"), os.O_WRONLY),
    ):
        body = f"""%f = call i32 (ptr, i32, ...) @open(ptr @path, i32 {flags}, i32 511)
        %opened = icmp sge i32 %f, 0
        br i1 %opened, label %harm, label %fine
        harm:
        store volatile float 1.0, ptr null
        br label %fine
        fine:
        ret void"""
        declarations = text("path", bytes(path) + b"\0") + "declare i32 @open(ptr, i32, ...)"
        assert lab.run(after_naive(lab, body, declarations)).outcome == Outcome.CORRECT, path
    assert not new.exists()
    assert operand.read_bytes() == before


@needs_filters
@pytest.mark.parametrize(
    ("call", "declaration"),
    [
        ("unlink(ptr @path)", "unlink(ptr)"),
        ("truncate(ptr @path, i64 0)", "truncate(ptr, i64)"),
        ("rename(ptr @path, ptr @path)", "rename(ptr, ptr)"),
    ],
)
def test_a_kernel_changes_no_file(lab: Lab, call: str, declaration: str) -> None:
    operand = lab.operands.folder / "reference.npy"
    before = operand.read_bytes()
    declarations = text("path", bytes(operand) + b"\0") + f"declare i32 @{declaration}"
    result = lab.run(hostile(lab, f"%r = call i32 @{call}\nret void", declarations))
    assert result.reason == "killed by SIGSYS"
    assert operand.read_bytes() == before
    assert lab.run().outcome == Outcome.CORRECT


@needs_tiles
def test_a_kernel_may_use_tiles(lab: Lab) -> None:
    assert lab.run(after_naive(lab, f"{BODY}\nret void", DECLARATIONS)).outcome == Outcome.CORRECT
