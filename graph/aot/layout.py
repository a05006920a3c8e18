"""Where things lie in a context of an exported network, and what its functions answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastrun.graph.aot.ports import Outer
from fastrun.kernels.core.processors import Needs
from fastrun.kernels.native.driver import JOB_WORDS, team_bytes

MOST_THREADS = 64

# Operands of a step are stored as a kind in the top byte and an offset or number below it.
# A place in the arena whose part an array of the caller's may take is stored with the number of
# the port above the offset. Ports are inputs, then outputs.
ARENA, WEIGHTS, INPUT, OUTPUT, NONE, TAKEN = range(6)
KIND_BITS, PORT_BITS = 56, 40
MOST_IN_PLACE = 64  # ports of lower numbers may be used where they are

ERRORS = {
    "OPTIONS": "an option is out of range, or the struct has another size",
    "WEIGHTS_MISSING": "the file of weights cannot be read",
    "WEIGHTS_OTHER": "the file of weights belongs to another export",
    "MEMORY": "the system gives no memory, or the caller gave too little",
    "THREADS": "the system allows no more threads",
    "PROCESSOR": "the processor lacks what the code needs, or its system does not allow it",
}
"""Error codes by name, from 1 on in this order."""

HEAD_BYTES = 64  # of a file of weights: what identifies it
WEIGHTS_ALIGN = 4096

# Bytes in front of weights, whole pages of any system: how many contexts share them.
SHARED_BYTES = 1 << 16
HUGE_PAGE = 2 << 20  # bytes; weights begin at such an address
MADV_HUGEPAGE = 14

ENTRY = "{ ptr, i64, [6 x i64], i64 }"
"""A step as exported: its function, tasks, operands and whether it joins."""

LOOSE = "{ ptr, i64 }"
"""A step that copies by strides of the caller's: its function and tasks."""

VARIANT = "{ ptr, i64, i64, i64, i64, ptr, ptr, i64 }"
"""A `Variant`: steps, count, arena, local, start of weights, name, loose, bytes of weights."""

STEP_BYTES = 72

# Where things lie in a context, in bytes from its start.
THREADS_AT, VARIANT_AT, WEIGHTS_AT, OWN_AT, MAPPED_AT, MAPPED_SIZE_AT, COUNT_AT = range(0, 56, 8)
STRIDES_AT, IN_PLACE_AT, JOB_AT, TEAM_AT, HANDLES_AT = 56, 64, 72, 256, 1280
ARGUMENTS_AT = HANDLES_AT + 8 * MOST_THREADS
LOCALS_AT = ARGUMENTS_AT + 16 * MOST_THREADS
STEPS_AT = 4096
assert JOB_AT + 8 * len(JOB_WORDS) <= TEAM_AT
assert TEAM_AT + team_bytes(MOST_THREADS) <= HANDLES_AT
assert LOCALS_AT + 8 * MOST_THREADS <= STEPS_AT


@dataclass(frozen=True)
class Variant:
    """The code for one kind of processor: symbols and sizes in bytes.

    `steps` and `loose` are symbols of its tables. Its `weights` begin there in the file, and take
    `weight_bytes`.
    """

    name: str
    steps: str
    loose: str
    count: int
    arena: int
    local: int
    weights: int
    weight_bytes: int
    needs: Needs


@dataclass(frozen=True)
class InPlace:
    """How an input or output must lie so that steps can read or write it there.

    `strides` are those of its axes, in elements. The buffer of `room` bytes, all of which may be
    read, begins `origin` bytes in front of the first element, at a multiple of 64. It is `dense`
    if it lies like an array without strides; where an input does not, zeros lie round each plane.
    """

    strides: tuple[int, ...]
    origin: int
    room: int
    dense: bool


@dataclass(frozen=True)
class Interface:
    """What the functions of one library depend on.

    They are called `prefix`_open and so on. `head` are the first bytes of the file of weights,
    which has `file_size` bytes; `embed` is the symbol of weights in the library, "" if they lie in
    the file. `in_place` has an entry for each input and output, None if it is always copied.
    """

    prefix: str
    head: bytes
    file_size: int
    embed: str
    inputs: Sequence[Outer]
    outputs: Sequence[Outer]
    in_place: Sequence[InPlace | None]

    @property
    def ports(self) -> int:
        """The number of inputs and outputs."""
        return len(self.inputs) + len(self.outputs)

    @property
    def slot(self) -> int:
        """Bytes for the strides of an input or output."""
        return 8 * max(len(x.shape) for x in (*self.inputs, *self.outputs))


def code(error: str) -> int:
    """The number of an error."""
    return list(ERRORS).index(error) + 1


def job_word(name: str, value: str, kind: str = "i64") -> str:
    """IR that stores a value in a word of the context's job."""
    at = f"%job.{name}"
    return (
        f"  {at} = getelementptr i8, ptr %context, i64 {JOB_AT + 8 * JOB_WORDS.index(name)}\n"
        f"  store {kind} {value}, ptr {at}, align 8"
    )


def word(place: int, value: str, kind: str = "i64") -> str:
    """IR that stores a value in a word of the context."""
    return (
        f"  %word{place} = getelementptr i8, ptr %context, i64 {place}\n"
        f"  store {kind} {value}, ptr %word{place}, align 8"
    )
