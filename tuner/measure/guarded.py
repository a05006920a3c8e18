"""Run a kernel among guarded, poisoned buffers and compare its output with float64.

This happens in a process that may die. Nothing here protects the caller.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.core.attention import parse_problem
from fastrun.kernels.core.cpu import CACHE_LINE, Cpu
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.pages import private_pages
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.runner import Buffers, Runner
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.measure.job import Job
from fastrun.tuner.measure.timing import weight_copies
from fastrun.tuner.records.record import Errors

GUARD = 1024  # bytes on either side of every buffer

# Guards hold a float that is large, so that an output shows its use, and finite, because a kernel
# may multiply it by zero.
PATTERN = np.frombuffer(np.float32(1.25e20).tobytes(), np.uint8)

INPUTS = ("src", "weights", "bias", "add")
BUFFERS = (*INPUTS, "dst", "shared", "local")

STRAYS = tuple([f"wrote outside {b}" for b in BUFFERS] + [f"wrote into {b}" for b in INPUTS])
"""What `Subject.stray` and `Subject.spoilt` may find; they return an index into this."""


class Arena:
    """Memory that buffers are cut from; it serves one kernel after the other."""

    def __init__(self) -> None:
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._guards: list[tuple[str, NDArray[np.uint8]]] = []
        self._starts: dict[str, int] = {}

    def lay_out(self, sizes: Mapping[str, tuple[int, Any]]) -> dict[str, NDArray[Any]]:
        """Buffers of so many elements of a type, in this order, each between two guards.

        Raises:
            MemoryError: they exceed the limit of this process.
        """
        starts, position, taken = self._starts, 0, dict[str, int]()
        starts.clear()
        for name, (count, dtype) in sizes.items():
            starts[name], taken[name] = position + GUARD, count * np.dtype(dtype).itemsize
            end = position + taken[name] + 2 * GUARD
            position = -(-end // CACHE_LINE) * CACHE_LINE
        if position > self._memory.size:
            self._memory = np.frombuffer(private_pages(position), np.uint8)
        self._guards = []
        found = {}
        for name, start in starts.items():
            end = start + taken[name]
            for low, high in ((start - GUARD, start), (end, end + GUARD)):
                self._memory[low:high] = guarding(GUARD)
                self._guards.append((name, self._memory[low:high]))
            found[name] = self._memory[start:end].view(sizes[name][1])
        return found

    def address(self, name: str) -> int:
        """The address of a buffer's start, which an empty array does not have."""
        return int(self._memory.ctypes.data) + self._starts[name]

    def damaged(self) -> str | None:
        """The name of a buffer with a changed guard."""
        expected = guarding(GUARD)
        return next((name for name, guard in self._guards if (guard != expected).any()), None)


@functools.lru_cache(8)
def guarding(count: int) -> NDArray[np.uint8]:
    """So many bytes of what guards hold."""
    return np.resize(PATTERN, count)


def judged(job: Job, found: NDArray[Any]) -> tuple[Errors, str | None]:
    """The error of what a job's kernel left in dst, and the reason in one line if it is wrong."""
    dst = job.program.io.dst
    template, schedule = parse_schedule(job.program.schedule)
    expected = template.error(parse_problem(job.program.problem), schedule)
    errors, wrong = job.operands.compare(dst.unpack(found), expected, job.limits.error)
    if wrong is None and any(dst.halo) and dst.halo_of(found).any():
        wrong = "wrote into the halo of dst"
    if wrong is None and not np.isfinite(dst.dtype.decode(found)).all():
        wrong = "padding channels of dst are not finite"
    return errors, wrong


class Subject:
    """A job's kernel, loaded, with its operands in guarded buffers.

    Raises:
        RuntimeError: the code cannot be loaded.
        MemoryError: the buffers exceed the limit of this process.
    """

    def __init__(self, job: Job, arena: Arena, cores: Sequence[int]) -> None:
        self._job, self._arena = job, arena
        program, operands, io = job.program, job.operands, job.program.io
        library = Library(program.code, [stage.symbol for stage in program.stages])
        self._runner = Runner(library, program.stages, cores)
        self._inputs: dict[str, NDArray[Any]] = {
            "src": operands.pack("x", io.src),
            "weights": np.load(program.weights, mmap_mode="r"),
            "bias": operands.load("bias"),
            "add": operands.pack("add", io.add),
        }
        weights = self._inputs["weights"]
        cold = job.regime == "cold-weights"
        self._copies = weight_copies(weights.nbytes, Cpu.host()) if cold else 1
        line = CACHE_LINE // weights.itemsize
        self._stride = -(-(weights.size + READ_SLACK) // line) * line
        sizes = {name: (array.size, array.dtype) for name, array in self._inputs.items()}
        if cold:
            sizes["weights"] = self._stride * self._copies, weights.dtype
        work = np.dtype(np.float32)
        sizes |= {
            "dst": (io.dst.size, io.dst.dtype.numpy),
            "shared": (-(-program.shared_bytes // work.itemsize), work),
        }
        locals_ = [f"local {t}" for t in range(job.threads)]
        sizes |= dict.fromkeys(locals_, (-(-program.local_bytes // work.itemsize), work))
        self._arrays = arena.lay_out(sizes)
        for name, array in self._inputs.items():
            self._arrays[name][: array.size] = array
        self._slack = self._arrays["weights"][weights.size : self._stride]
        self._slack.view(np.uint8)[:] = guarding(self._slack.nbytes)
        for name in ("shared", *locals_):
            self._arrays[name][:] = np.nan
        self._dst = self._arrays["dst"]
        self._dst[:] = operands.poison(io.dst)
        self._checked = self._dst
        self._buffers = Buffers(
            **{name: arena.address(name) for name in (*INPUTS, "dst", "shared")},
            local=tuple(map(arena.address, locals_)),
        )

    def calls(self, repeats: int) -> float:
        """Run the kernel `repeats` times; seconds for all calls together."""
        return self._runner.run(self._buffers, self._job.threads, repeats)

    def stray(self) -> int | None:
        """Index in `STRAYS` of a write outside a buffer."""
        damaged = self._arena.damaged()
        if (self._slack.view(np.uint8) != guarding(self._slack.nbytes)).any():
            damaged = "weights"
        return None if damaged is None else BUFFERS.index(damaged.split()[0])

    def spoilt(self) -> int | None:
        """Index in `STRAYS` of a write into an input."""
        for i, (name, original) in enumerate(self._inputs.items()):
            if self._arrays[name][: original.size].tobytes() != original.tobytes():
                return len(BUFFERS) + i
        return None

    def check(self) -> tuple[Errors, str | None]:
        """As `judged`, of the output as it is now."""
        self._checked = self._dst.copy()
        return judged(self._job, self._dst)

    def stable(self) -> bool:
        """Whether the output still has the same bits as when it was checked."""
        return self._dst.tobytes() == self._checked.tobytes()

    def cool(self) -> None:
        """Fill the copies of the weights that calls take in turn, if the regime needs copies."""
        if self._copies == 1:
            return
        packed = self._inputs["weights"]
        grid = self._arrays["weights"].reshape(self._copies, self._stride)
        grid[1:, : packed.size], grid[1:, packed.size :] = packed, self._slack
        stride = self._stride * packed.itemsize
        self._buffers = replace(self._buffers, copies=self._copies, stride=stride)
