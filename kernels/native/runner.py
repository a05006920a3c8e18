"""Run steps of native code, many times, on some threads, with a barrier between.

No Python runs between the first step and the last, so a block of calls costs what the kernels
cost. The driver adds a few nanoseconds per step on one thread, a few hundred on two.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass

from fastrun.kernels.core.program import Stage
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.team import Script, Step, disband_all, team, teams

atexit.register(disband_all)
# A forked process has none of the threads.
os.register_at_fork(after_in_child=teams.clear)


@dataclass(frozen=True)
class Buffers:
    """Addresses of a program's operands.

    `local` has one workspace per thread. There may be several `copies` of the weights, `stride`
    bytes apart. Each call takes the next copy, so that their total size decides what is cached.
    """

    src: int
    weights: int
    bias: int
    add: int
    dst: int
    shared: int
    local: tuple[int, ...]
    copies: int = 1
    stride: int = 0


class Runner:
    """Runs the stages of a loaded program.

    If `cores` are given, thread t is bound to cores[t]; thread 0 is the caller's and is not bound.
    """

    def __init__(
        self, library: Library, stages: Sequence[Stage], cores: Sequence[int] = ()
    ) -> None:
        self._library = library  # keeps the code mapped
        self._stages = tuple(stages)
        self._cores = tuple(cores)
        self._copy = 0

    def run(self, buffers: Buffers, threads: int = 1, repeats: int = 1) -> float:
        """Call the program `repeats` times; seconds for all of them, measured by thread 0.

        Raises:
            ValueError: fewer cores or local workspaces than threads.
            OSError: one of the cores may not be used.
        """
        if threads > min(len(buffers.local), len(self._cores) or threads):
            raise ValueError(f"{threads} threads need as many cores and local workspaces")
        copies = self._copy, buffers.copies, buffers.stride
        script = Script(self._steps(buffers), threads, buffers.local)
        workers = team(threads, self._cores if threads > 1 else ())
        seconds = workers.run(script, repeats, copies, meet=True)
        self._copy = (self._copy + repeats) % buffers.copies
        return seconds

    def _steps(self, b: Buffers) -> list[Step]:
        return [
            Step(
                self._library.address(stage.symbol), stage.tasks,
                b.src, b.weights, b.bias, b.add, b.dst, b.shared, 1,
            )
            for stage in self._stages
        ]  # fmt: skip
