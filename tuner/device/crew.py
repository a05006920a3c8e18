"""The threads of a child of a device, and stages that they walk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from fastrun.kernels.core.program import Stage
from fastrun.kernels.native.driver import APART, AVOIDED, COUNTERS, JOB_WORDS, TALLY, team_bytes
from fastrun.kernels.native.flat import Blob
from fastrun.tuner.device.channel import Operations
from fastrun.tuner.device.confine import computing
from fastrun.tuner.device.session import Child, Session, checked_address, words
from fastrun.tuner.measure.climate import Sensors
from fastrun.tuner.measure.timing import Surroundings

_STACK = 1 << 16  # bytes of a thread's stack, beside the workspace
_THREAD = 0x50F00  # flags of clone: memory, files, signals and process are shared
_AFFINITY = 128  # bytes of a set of cores
_SPARE = 1 << 12  # bytes for files of the system and for the filter of system calls
_SAID = 128  # bytes of such a file


class Crew:
    """The threads of a child, each on its core, and what the system says of them in files."""

    def __init__(self, child: Child, cores: Sequence[int], sensors: Sensors | None = None) -> None:
        self.child, self.threads = child, len(cores)
        self._sensors = sensors or Sensors()
        session, self._surroundings = child.session, Surroundings()
        # Memory for the team, the arguments and stacks of threads, and what is spare.
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


def stages_at(blob: Blob, address: int, stages: Sequence[Stage]) -> list[tuple[int, int]]:
    """The addresses of the functions of code at an address, and their tasks."""
    return [(address + blob.symbols[stage.symbol], stage.tasks) for stage in stages]


def _anonymous(session: Session, size: int) -> Operations:
    return session.system(Operations(), "mmap", 0, size, 3, 34, -1, 0)


def _core_set(core: int) -> bytes:
    return (1 << core).to_bytes(_AFFINITY, "little")
