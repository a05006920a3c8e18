"""Kernels in a child of a device: their memory, their calls, and what they did.

The like of `tuner.measure.guarded`, on another machine: the same guards, poison and judgement. The
memory is there, and everything that decides is here.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from fastrun.kernels.core.cpu import CACHE_LINE, Cpu
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.program import Stage
from fastrun.kernels.native.driver import APART, AVOIDED, COUNTERS, JOB_WORDS, TALLY, team_bytes
from fastrun.kernels.native.flat import Blob
from fastrun.tuner.device.channel import Operations
from fastrun.tuner.device.confine import computing
from fastrun.tuner.device.session import READ, RUN, Child, Session, checked_address, words
from fastrun.tuner.device.support import kernel
from fastrun.tuner.measure.climate import Sensors
from fastrun.tuner.measure.guarded import BUFFERS, GUARD, INPUTS, PATTERN, judged
from fastrun.tuner.measure.job import Job
from fastrun.tuner.measure.timing import Surroundings, weight_copies
from fastrun.tuner.records.record import Errors

_GUARDING = struct.unpack("<I", PATTERN.tobytes())[0]
_NAN = 0x7FC00000
_STACK = 1 << 16  # bytes of a thread's stack, beside the workspace
_THREAD = 0x50F00  # flags of clone: memory, files, signals and process are shared
_AFFINITY = 128  # bytes of a set of cores
_SPARE = 1 << 12  # bytes for files of the system and for the filter of system calls
_SAID = 128  # bytes of such a file
_MOST_PAGES = 64


class Crew:
    """The threads of a child, each on its core, and what the system says of them in files."""

    def __init__(self, child: Child, cores: Sequence[int], sensors: Sensors | None = None) -> None:
        self.child, self.threads = child, len(cores)
        self._sensors = sensors or Sensors()
        session, self._surroundings = child.session, Surroundings()
        self._desk = checked_address(
            cast(int, child.ask(_anonymous(session, self._desk_bytes()))[0]), self._desk_bytes()
        )
        self.team = self._desk
        starting = Operations()
        starting.poke(self.team + AVOIDED, words(-1))  # the threads are bound
        own = self._arguments(0)
        starting.poke(own + 16, _core_set(cores[0]))
        session.system(starting, "sched_setaffinity", 0, _AFFINITY, own + 16)
        for number in range(1, self.threads):
            at = self._arguments(number)
            starting.poke(at, words(self.team, number) + _core_set(cores[number]))
            top = self._desk + self._desk_bytes() - (self.threads - 1 - number) * _STACK
            start = session.function("thread"), _THREAD, top, session.function("live"), at
            starting.call(*start)
        results = cast(list[int], child.ask(starting))
        tasks = ["self", *(f"self/task/{thread}" for thread in results[1:])]
        self._files = self._opened([f"/proc/{task}/schedstat" for task in tasks])
        self._files += self._opened(self._sensors.files)

    def _arguments(self, number: int) -> int:
        return self._desk + team_bytes(self.threads) + number * (16 + _AFFINITY)

    def _desk_bytes(self) -> int:
        used = team_bytes(self.threads) + self.threads * (16 + _AFFINITY) + _SPARE
        return -(-used // 4096) * 4096 + (self.threads - 1) * _STACK

    def _opened(self, paths: Sequence[str]) -> list[int]:
        """Files of the system; negative numbers for those that are missing."""
        opening, session = Operations(), self.child.session
        for path in paths:
            where = session.path(opening, path)
            session.system(opening, "openat", -100, where, 0, 0)
        return cast(list[int], self.child.ask(opening))

    def confine(self) -> None:
        """From now on the child can compute and answer, where the system supports that."""
        filtering, session = Operations(), self.child.session
        code = computing(session.machine)
        at = self._arguments(self.threads)
        filtering.poke(at + 16, code).poke(at, words(len(code) // 8, at + 16))
        session.system(filtering, "prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        session.system(filtering, "seccomp", 1, 5, at)  # SET_MODE_FILTER; TSYNC, SPEC_ALLOW
        self.child.ask(filtering)

    def run(self, job: Mapping[str, int], at: int, timeout: float) -> float:
        """Seconds of a job of the driver, whose words are put at an address."""
        given = {**job, "threads": self.threads}
        asked = Operations().poke(at, words(*(given.get(name, 0) for name in JOB_WORDS)))
        session = self.child.session
        asked.call(session.function("lead"), self.team, at)
        spare = self._arguments(self.threads)
        for file in self._files:
            session.system(asked, "pread64", file, spare, _SAID, 0).peek(spare, _SAID)
        nanoseconds, *found = self.child.ask(asked, timeout)
        said = [
            cast(bytes, content)[: max(0, cast(int, size))].decode(errors="replace").strip()
            for size, content in zip(found[::2], found[1::2], strict=True)
        ]
        counts = [text.split() for text in said[: self.threads]]
        waited = 1e-9 * sum(int(fields[1]) for fields in counts if len(fields) > 2)
        self._surroundings = Surroundings(waited, self._sensors.climate(said[self.threads :]))
        return 1e-9 * cast(int, nanoseconds)

    def look(self) -> Surroundings:
        """What the threads were exposed to until the last run ended."""
        return self._surroundings


class Walk:
    """Stages at addresses of the device with their operands, ready to be called.

    `places` are the addresses of src, weights, bias, add, dst and shared, `locals_` those of the
    threads' workspaces; `copies` of the weights are `stride` bytes apart.
    """

    def __init__(
        self,
        crew: Crew,
        stages: Sequence[tuple[int, int]],
        places: Sequence[int],
        locals_: Sequence[int],
        timeout: float,
        copies: tuple[int, int] = (1, 0),
    ) -> None:
        self._crew, self._timeout = crew, timeout
        self._copies, self._stride = copies
        self._copy = 0
        session, child = crew.child.session, crew.child
        table = b"".join(words(stage, tasks, *places, 1) for stage, tasks in stages)
        counters = TALLY + 2 * len(stages) * crew.threads * COUNTERS
        size = 1024 + len(table) + 8 * crew.threads + counters + 2 * APART
        at = checked_address(cast(int, child.ask(_anonymous(session, size))[0]), size)
        self._job, steps = at, at + 1024
        local = steps + len(table)
        tally = -(-(local + 8 * crew.threads) // APART) * APART
        self._fixed = {
            "steps": steps, "count": len(stages), "local": local, "meet": 1, "tally": tally,
            "copies": self._copies, "stride": self._stride,
        }  # fmt: skip
        child.ask(Operations().poke(steps, table).poke(local, words(*locals_)))

    def calls(self, repeats: int) -> float:
        """Seconds of so many calls of all stages."""
        job = {**self._fixed, "repeats": repeats, "copy": self._copy}
        self._copy = (self._copy + repeats) % self._copies
        return self._crew.run(job, self._job, self._timeout)


class Subject:
    """A job's kernel with its operands in guarded buffers of a child.

    Raises:
        MemoryError: the device has no memory for them.
        OSError: the device cannot store them.
        ElfError: the code cannot be linked.
    """

    def __init__(self, job: Job, crew: Crew, cpu: Cpu, library: bytes, draw: random.Random) -> None:
        self._job, self._crew = job, crew
        child, session = crew.child, crew.child.session
        program, operands, io = job.program, job.operands, job.program.io
        blob = kernel(program.code, library)
        packed = np.load(program.weights, mmap_mode="r")
        contents = {
            "src": operands.pack("x", io.src).tobytes(),
            "weights": packed.tobytes(),
            "bias": operands.load("bias").tobytes(),
            "add": operands.pack("add", io.add).tobytes(),
            "dst": operands.poison(io.dst).tobytes(),
        }
        copies = weight_copies(packed.nbytes, cpu) if job.regime == "cold-weights" else 1
        line = CACHE_LINE // packed.itemsize
        stride = packed.itemsize * (-(-(packed.size + READ_SLACK) // line) * line)
        sizes = {name: len(contents[name]) for name in INPUTS}
        self._sizes = dict(sizes)
        if copies > 1:
            sizes["weights"] = copies * stride
        sizes |= {"dst": len(contents["dst"]), "shared": _whole(program.shared_bytes)}
        sizes |= {f"local {t}": _whole(program.local_bytes) for t in range(job.threads)}
        sizes["kept"] = sizes["dst"]
        self._places, end = _laid_out(sizes)
        shift = 4096 * draw.randrange(_MOST_PAGES)  # addresses differ from process to process
        base = child.map(end + 4096 * _MOST_PAGES) + shift
        self._places = {name: base + at for name, at in self._places.items()}
        self._all, self._slack = sizes, (stride - packed.nbytes) if copies > 1 else 0
        files = [session.put(content) for content in contents.values()]
        code = session.put(blob.code)
        lengths = [*map(len, contents.values()), len(blob.code)]
        found = child.files([*files, code], lengths, [READ] * len(files) + [READ | RUN])
        self._originals = dict(zip(contents, found[:-1], strict=True))
        self._fill(copies, stride)
        self._walk = Walk(
            crew,
            stages_at(blob, found[-1], program.stages),
            [self._places[name] for name in (*INPUTS, "dst", "shared")],
            [self._places[f"local {t}"] for t in range(job.threads)],
            job.timeout(),
            (copies, stride),
        )

    def _fill(self, copies: int, stride: int) -> None:
        session, filling = self._crew.child.session, Operations()
        fill, copy = session.function("fill"), session.function("memcpy")
        for name, size in self._all.items():
            start = self._places[name]
            if name in self._originals:
                held = self._sizes.get(name, size)
                filling.call(copy, start, self._originals[name], held)
                if name == "weights" and self._slack:
                    filling.call(fill, start + held, self._slack, _GUARDING)
                    made = 1
                    while made < copies:
                        further = min(made, copies - made)
                        filling.call(copy, start + made * stride, start, further * stride)
                        made += further
            elif name != "kept":
                filling.call(fill, start, size, _NAN)
            for guard in (start - GUARD, start + size):
                filling.call(fill, guard, GUARD, _GUARDING)
        self._crew.child.ask(filling)

    def calls(self, repeats: int) -> float:
        """Run the kernel `repeats` times; seconds for all calls together."""
        return self._walk.calls(repeats)

    def stray(self) -> int | None:
        """Index in `STRAYS` of a write outside a buffer."""
        session, looking = self._crew.child.session, Operations()
        unlike, names = session.function("unlike"), list[str]()
        for name, size in self._all.items():
            for guard in (self._places[name] - GUARD, self._places[name] + size):
                looking.call(unlike, guard, GUARD, _GUARDING)
                names.append(name)
        if self._slack:
            behind = self._places["weights"] + self._sizes["weights"]
            looking.call(unlike, behind, self._slack, _GUARDING)
            names.append("weights")
        found = self._crew.child.ask(looking)
        damaged = next((n for n, at in zip(names, found, strict=True) if at != -1), None)
        if damaged is None:
            return None
        return BUFFERS.index("dst" if damaged == "kept" else damaged.split()[0])

    def spoilt(self) -> int | None:
        """Index in `STRAYS` of a write into an input."""
        looking = Operations()
        for name in INPUTS:
            self._compare(looking, self._places[name], self._originals[name], self._sizes[name])
        found = self._crew.child.ask(looking)
        damaged = next((i for i, at in enumerate(found) if at != -1), None)
        return None if damaged is None else len(BUFFERS) + damaged

    def check(self) -> tuple[Errors, str | None]:
        """As `judged`, of the output as it is now, which is kept."""
        dst, size = self._job.program.io.dst, self._all["dst"]
        asked = Operations().peek(self._places["dst"], size)
        copy = self._crew.child.session.function("memcpy")
        asked.call(copy, self._places["kept"], self._places["dst"], size)
        output = cast(bytes, self._crew.child.ask(asked)[0])
        return judged(self._job, np.frombuffer(output, dst.dtype.numpy))

    def stable(self) -> bool:
        """Whether the output still has the same bits as when it was checked."""
        looking = Operations()
        self._compare(looking, self._places["dst"], self._places["kept"], self._all["dst"])
        return self._crew.child.ask(looking)[0] == -1

    def _compare(self, operations: Operations, a: int, b: int, size: int) -> None:
        operations.call(self._crew.child.session.function("differ"), a, b, size)


def _anonymous(session: Session, size: int) -> Operations:
    return session.system(Operations(), "mmap", 0, size, 3, 34, -1, 0)


def _core_set(core: int) -> bytes:
    return (1 << core).to_bytes(_AFFINITY, "little")


def _whole(size: int) -> int:
    return -(-size // 4) * 4


def _laid_out(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each buffer begins, with a guard on either side; where they end."""
    starts, position = dict[str, int](), 0
    for name, size in sizes.items():
        starts[name] = position + GUARD
        position = -(-(position + size + 2 * GUARD) // CACHE_LINE) * CACHE_LINE
    return starts, position


def stages_at(blob: Blob, address: int, stages: Sequence[Stage]) -> list[tuple[int, int]]:
    """The addresses of the functions of code at an address, and their tasks."""
    return [(address + blob.symbols[stage.symbol], stage.tasks) for stage in stages]
