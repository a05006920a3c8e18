"""Run a kernel among guarded, poisoned buffers and compare its output with float64.

This happens in a process that may die. Nothing here protects the caller.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fastrun.kernels.core.cpu import Cpu, whole_lines
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import READ_SLACK, Array, Placement
from fastrun.kernels.core.pages import private_pages
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.runner import Buffers, Runner
from fastrun.tuner.measure.job import Job
from fastrun.tuner.measure.timing import weight_copies
from fastrun.tuner.records.record import Errors

GUARD = 256  # floats on either side of every buffer
assert GUARD >= READ_SLACK

# The value of guards. It is large, so that an output shows its use, and finite, because a kernel
# may multiply it by zero.
GUARD_VALUE = np.float32(1.25e20)

_INPUTS = ("src", "weights", "bias", "add")
_BUFFERS = (*_INPUTS, "dst", "shared", "local")

STRAYS = tuple([f"wrote outside {b}" for b in _BUFFERS] + [f"wrote into {b}" for b in _INPUTS])
"""What `Subject.stray` and `Subject.spoilt` may find; they return an index into this."""


class Arena:
    """Memory that buffers are cut from; it serves one kernel after the other."""

    def __init__(self) -> None:
        self._memory: Array = np.empty(0, np.float32)
        self._guards: list[tuple[str, Array]] = []
        self._starts: dict[str, int] = {}

    def lay_out(self, sizes: Mapping[str, int]) -> dict[str, Array]:
        """Buffers of these sizes in floats, in this order, each between two guards.

        Raises:
            MemoryError: they exceed the limit of this process.
        """
        starts, position = self._starts, 0
        starts.clear()
        for name, size in sizes.items():
            starts[name] = position + GUARD
            position = whole_lines(position + size + 2 * GUARD)
        if position > self._memory.size:
            self._memory = np.frombuffer(private_pages(F32.bytes(position)), np.float32)
        self._guards = []
        for name, start in starts.items():
            end = start + sizes[name]
            for low, high in ((start - GUARD, start), (end, end + GUARD)):
                self._memory[low:high] = GUARD_VALUE
                self._guards.append((name, self._memory[low:high]))
        return {name: self._memory[start : start + sizes[name]] for name, start in starts.items()}

    def address(self, name: str) -> int:
        """The address of a buffer's start, which an empty array does not have."""
        return int(self._memory.ctypes.data) + F32.bytes(self._starts[name])

    def damaged(self) -> str | None:
        """The name of a buffer with a changed guard."""
        return next((name for name, guard in self._guards if (guard != GUARD_VALUE).any()), None)


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
        self._inputs: dict[str, Array] = {
            "src": operands.pack("x", io.src),
            "weights": np.load(program.weights, mmap_mode="r"),
            "bias": operands.load("bias"),
            "add": operands.pack("add", io.add),
        }
        weights = self._inputs["weights"]
        cold = job.regime == "cold-weights"
        self._copies = weight_copies(weights.nbytes, Cpu.host()) if cold else 1
        self._stride = whole_lines(weights.size + READ_SLACK)
        sizes = {name: array.size for name, array in self._inputs.items()}
        if cold:
            sizes["weights"] = self._stride * self._copies
        sizes |= {"dst": io.dst.size, "shared": -(-program.shared_bytes // 4)}
        locals_ = [f"local {t}" for t in range(job.threads)]
        sizes |= dict.fromkeys(locals_, -(-program.local_bytes // 4))
        self._arrays = arena.lay_out(sizes)
        for name, array in self._inputs.items():
            self._arrays[name][: array.size] = array
        self._slack = self._arrays["weights"][weights.size : self._stride]
        self._slack[:] = GUARD_VALUE
        for name in ("shared", *locals_):
            self._arrays[name][:] = np.nan
        self._dst = self._arrays["dst"]
        self._dst[:] = _poison(io.dst)
        self._checked = self._dst
        self._buffers = Buffers(
            **{name: arena.address(name) for name in (*_INPUTS, "dst", "shared")},
            local=tuple(map(arena.address, locals_)),
        )

    def calls(self, repeats: int) -> float:
        """Run the kernel `repeats` times; seconds for all calls together."""
        return self._runner.run(self._buffers, self._job.threads, repeats)

    def stray(self) -> int | None:
        """Index in `STRAYS` of a write outside a buffer."""
        damaged = self._arena.damaged()
        if (self._slack != GUARD_VALUE).any():
            damaged = "weights"
        return None if damaged is None else _BUFFERS.index(damaged.split()[0])

    def spoilt(self) -> int | None:
        """Index in `STRAYS` of a write into an input."""
        for i, (name, original) in enumerate(self._inputs.items()):
            if not np.array_equal(self._arrays[name][: original.size], original):
                return len(_BUFFERS) + i
        return None

    def check(self) -> tuple[Errors, str | None]:
        """The output's error against float64, and the reason in one line if it is wrong."""
        dst, limit = self._job.program.io.dst, self._job.limits.error
        truth, scale = self._job.operands.load("reference"), self._job.operands.scale()
        found = dst.unpack(self._dst)
        self._checked = self._dst.copy()
        errors = Errors.of(found, truth, scale)
        if np.isinf(errors.max):
            bad = found.size - np.isfinite(found).sum()
            return errors, f"{bad} of {found.size} outputs are unwritten or not finite"
        if errors.max > limit:
            return errors, f"an output is off by {errors.max:.2g} of their rms; limit {limit:.2g}"
        if any(dst.halo) and dst.halo_of(self._dst).any():
            return errors, "wrote into the halo of dst"
        if not np.isfinite(self._dst).all():
            return errors, "padding channels of dst are not finite"
        return errors, None

    def stable(self) -> bool:
        """Whether the output still has the same bits as when it was checked."""
        return np.array_equal(self._dst, self._checked)

    def cool(self) -> None:
        """Fill the copies of the weights that calls take in turn, if the regime needs copies."""
        if self._copies == 1:
            return
        packed = self._inputs["weights"]
        grid = self._arrays["weights"].reshape(self._copies, self._stride)
        grid[1:, : packed.size], grid[1:, packed.size :] = packed, GUARD_VALUE
        self._buffers = replace(self._buffers, copies=self._copies, stride=F32.bytes(self._stride))


@functools.lru_cache(2)
def _poison(where: Placement) -> Array:
    """A buffer with NaN where a kernel must write, and zeros in halo and padding."""
    return where.pack(np.full((where.n, where.c, where.h, where.w), np.nan, np.float32))
