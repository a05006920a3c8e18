"""Where things lie in a context of an exported network, and what its functions answer."""

from __future__ import annotations

from dataclasses import dataclass

from fastrun.kernels.core.processors import Needs
from fastrun.kernels.native.driver import JOB_WORDS, team_bytes

MOST_THREADS = 64

# Operands of a step are stored as a kind in the top byte and an offset or number below it.
ARENA, WEIGHTS, INPUT, OUTPUT, NONE = range(5)
KIND_BITS = 56

ERRORS = {
    "OPTIONS": "an option is out of range, or the struct has another size",
    "WEIGHTS_MISSING": "the file of weights cannot be read",
    "WEIGHTS_OTHER": "the file of weights belongs to another export",
    "MEMORY": "the system gives no memory, or the caller gave too little",
    "THREADS": "the system allows no more threads",
    "PROCESSOR": "the processor lacks what the code needs",
}
"""Error codes by name, from 1 on in this order."""

HEAD_BYTES = 64  # of a file of weights: what identifies it
WEIGHTS_ALIGN = 4096

# Bytes in front of mapped weights, whole pages of any system: how many contexts share them.
SHARED_BYTES = 1 << 16

ENTRY = "{ ptr, i64, [6 x i64], i64 }"
"""A step as exported: its function, tasks, operands and whether it joins."""

LOOSE = "{ ptr, i64 }"
"""A step that copies by strides of the caller's: its function and tasks."""

STEP_BYTES = 72

# Where things lie in a context, in bytes from its start.
THREADS_AT, VARIANT_AT, WEIGHTS_AT, OWN_AT, MAPPED_AT, MAPPED_SIZE_AT, COUNT_AT = range(0, 56, 8)
STRIDES_AT = 56
JOB_AT, TEAM_AT, HANDLES_AT = 64, 256, 1280
ARGUMENTS_AT = HANDLES_AT + 8 * MOST_THREADS
LOCALS_AT = ARGUMENTS_AT + 16 * MOST_THREADS
STEPS_AT = 4096
assert TEAM_AT + team_bytes(MOST_THREADS) <= HANDLES_AT
assert LOCALS_AT + 8 * MOST_THREADS <= STEPS_AT


@dataclass(frozen=True)
class Variant:
    """The code for one kind of processor: symbols and sizes in bytes.

    `steps` and `loose` are symbols of its tables, `weights` is where its weights begin in the file.
    """

    name: str
    steps: str
    loose: str
    count: int
    arena: int
    local: int
    weights: int
    needs: Needs


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
