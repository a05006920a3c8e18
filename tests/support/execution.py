"""Run a program in this process, in any split of its tasks, and look at all it may touch.

`fastrun.tuner.measure.guarded` does the like. The two share no code, so that a mistake in one is
found by the other.
"""

from __future__ import annotations

import ctypes

import numpy as np

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import READ_SLACK, Array
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Program, pack_bias
from fastrun.kernels.core.reference import convolve
from fastrun.kernels.core.template import KernelTemplate
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.library import Library

GUARD = 64
CANARY = np.float32(1.25e20)

ENTRY = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 7, ctypes.c_int64, ctypes.c_int64)


class Guarded:
    """An array between canaries; a whole vector may be read behind it."""

    def __init__(self, content: Array) -> None:
        after = max(GUARD, READ_SLACK)
        # Canaries are whole elements of the content's type, of the bits of a large float.
        size = content.itemsize
        count = (GUARD + content.size + after) * size
        self.whole = np.resize(np.frombuffer(CANARY.tobytes(), np.uint8), count).view(content.dtype)
        self.inner = self.whole[GUARD : GUARD + content.size]
        self.inner[:] = content
        self._before = self.whole.tobytes()

    def intact(self) -> bool:
        start = GUARD * self.whole.itemsize
        end, found = start + self.inner.nbytes, self.whole.tobytes()
        return (found[:start], found[end:]) == (self._before[:start], self._before[end:])


def run(p: ConvProblem, program: Program, operands: dict[str, Array], threads: int = 1) -> Array:
    """The output (n, oc, oh, ow), each stage's tasks cut in `threads` runs."""
    bias = operands["bias"] if p.bias else np.zeros(p.oc, np.float32)
    return execute(program, {**operands, "bias": bias}, threads)


def execute(program: Program, operands: dict[str, Array], threads: int = 1) -> Array:
    """What `program` leaves in dst; operands are x and those of weights, bias, add it reads.

    `packed_bias` is a bias as the program reads it. An output of integers is poisoned by `poison`.
    """
    io = program.io
    none = np.zeros(0, np.float32)
    poison = np.float32(np.nan)
    bias = operands.get("packed_bias")
    if bias is None:
        bias = pack_bias(operands.get("bias", none))
    output = np.full(io.dst.size, poison, np.float32)
    if io.dst.dtype is not F32:
        output = np.full(io.dst.size, operands["poison"], io.dst.dtype.numpy)
    add = io.add.pack(operands["add"]) if "add" in operands else none
    buffers = {
        "src": Guarded(io.src.pack(operands["x"])),
        "weights": Guarded(program.pack_weights(operands.get("weights", none))),
        "bias": Guarded(bias),
        "add": Guarded(add),
        "dst": Guarded(output),
        "shared": Guarded(np.full(program.shared_bytes // 4, poison, np.float32)),
        "local": Guarded(np.full(program.local_bytes // 4, poison, np.float32)),
    }
    read_only = {name: buffers[name].whole.copy() for name in ("src", "weights", "bias", "add")}
    library = Library(
        ObjectCache().object(program.ir, Cpu.host()), [s.symbol for s in program.stages]
    )
    pointers = [b.inner.ctypes.data for b in buffers.values()]
    for stage in program.stages:
        entry = ENTRY(library.address(stage.symbol))
        for t in range(threads):
            begin, end = stage.tasks * t // threads, stage.tasks * (t + 1) // threads
            buffers["local"].inner[:] = poison
            entry(*pointers, begin, end)
    for name, buffer in buffers.items():
        assert buffer.intact(), f"wrote outside {name}"
    for name, before in read_only.items():
        assert before.tobytes() == buffers[name].whole.tobytes(), f"wrote into {name}"
    written = buffers["dst"].inner
    halo = io.dst.halo_of(written)
    assert np.array_equal(halo, io.dst.halo_of(output), equal_nan=True), "wrote into the halo"
    return io.dst.unpack(written)


def reference(p: ConvProblem, operands: dict[str, Array]) -> np.ndarray:
    bias = operands["bias"] if p.bias else None
    return convolve(p, operands["x"], operands["weights"], bias, operands["add"] if p.add else None)


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    """Largest error relative to the truth's root mean square; absolute where the truth is zero."""
    return float(np.abs(found - truth).max() / (np.sqrt(np.mean(truth**2)) or 1.0))


def rms_error(found: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square error. Outputs of `random_operands` are of order 1 before activation."""
    return float(np.sqrt(np.mean((found - truth) ** 2)))


def tolerance(template: KernelTemplate, p: ConvProblem, schedule: object) -> float:
    """The most `rms_error` of a right kernel: four times what it expects, and its epilogue's."""
    return 4 * template.error(p, schedule) + 2**-23
