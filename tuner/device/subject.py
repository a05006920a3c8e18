"""Kernels in a child of a device: their memory, their calls, and what they did.

The like of `tuner.measure.guarded`, on another machine: the same guards, poison and judgement. The
memory is there, and everything that decides is here.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from typing import cast

import numpy as np

from fastrun.kernels.core.cpu import CACHE_LINE, Cpu
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.tuner.device.channel import Operations
from fastrun.tuner.device.crew import Crew, Walk, stages_at
from fastrun.tuner.device.session import READ, RUN
from fastrun.tuner.device.support import kernel
from fastrun.tuner.measure.guarded import BUFFERS, GUARD, INPUTS, PATTERN, judged
from fastrun.tuner.measure.job import Job
from fastrun.tuner.measure.timing import weight_copies
from fastrun.tuner.records.record import Errors

_GUARDING = struct.unpack("<I", PATTERN.tobytes())[0]
_NAN = 0x7FC00000
_MOST_PAGES = 64  # by which the addresses of processes differ


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


def _whole(size: int) -> int:
    return -(-size // 4) * 4


def _laid_out(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each buffer begins, with a guard on either side; where they end."""
    starts, position = dict[str, int](), 0
    for name, size in sizes.items():
        starts[name] = position + GUARD
        position = -(-(position + size + 2 * GUARD) // CACHE_LINE) * CACHE_LINE
    return starts, position
