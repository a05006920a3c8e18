"""The inputs of kernels and the float64 output: made once per problem, shared through files."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.core.attention import Problem, parse_problem
from fastrun.kernels.core.dtype import U8
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import pack_bias
from fastrun.kernels.core.quantised import is_exact, steps_off, trial_operands
from fastrun.kernels.core.reference import random_operands, truth
from fastrun.tuner.measure.ulimits import small_limits
from fastrun.tuner.records.record import Errors
from fastrun.tuner.records.units import size

# The largest rms error of outputs of u8, in steps, beyond that of rounding them.
STEPS = 0.15

# Times the size of the weights: room for the packed weights of several schedules. Those of Winograd
# are several times as large.
_PACKED = 16
_CLAIMS = 10  # attempts to make a folder before another process removes it as left behind


class Scratch:
    """Folders for the files of one run, in memory if there is room. A context manager.

    They lie in $TMPDIR if that is set, else in shared memory, else in a temporary folder of the
    system. They are deleted when the context ends. Each folder is held by a lock: the next run
    removes the folders of killed processes and no others, also across containers.
    """

    def __init__(self) -> None:
        named = os.environ.get("TMPDIR")
        places = [named] if named else []
        places += ["/dev/shm", tempfile.gettempdir(), "/var/tmp"]
        self._roots = [root for root in dict.fromkeys(map(Path, places)) if root.is_dir()]
        for root in self._roots:
            _clean(root)
        self._held: dict[Path, tuple[Path, int]] = {}

    @property
    def folder(self) -> Path:
        """A folder for small files."""
        return self.room(0)

    def room(self, count: int) -> Path:
        """A folder with room for `count` more bytes.

        Raises:
            OSError: there is none; the message lists the folders that were tried.
        """
        refusals = []
        for root in self._roots:
            try:
                free = shutil.disk_usage(root).free
                if free >= count and os.access(root, os.W_OK | os.X_OK):
                    if root not in self._held:
                        self._held[root] = _claim(root)
                    return self._held[root][0]
                refusals.append(f"{root} has {size(free)}" if free < count else f"{root} is closed")
            except OSError as error:
                refusals.append(f"{root}: {error.strerror}")
        raise OSError(
            errno.ENOSPC,
            f"no folder has room for {size(count)} of operands ({', '.join(refusals)}): "
            "set TMPDIR to one that has",
        )

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        for folder, lock in self._held.values():
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)
            os.close(lock)


def _claim(root: Path) -> tuple[Path, int]:
    """A new folder, and the file descriptor that holds its lock."""
    for _ in range(_CLAIMS):
        folder = Path(tempfile.mkdtemp(prefix="fastrun-", dir=root))
        lock = _lock(folder)
        if lock is not None:
            return folder, lock
        shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it
    raise OSError(errno.ENOLCK, "has no locks")


def _lock(folder: Path) -> int | None:
    """A descriptor that holds a folder's lock; None if it is held elsewhere or gone."""
    path, flags = folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    try:
        lock = os.open(path, flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _clean(root: Path) -> None:
    """Remove folders of earlier runs whose lock is free."""
    for left in root.glob("fastrun-????????"):
        with suppress(OSError):  # it is gone, or belongs to another user
            status = left.lstat()
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if ours and (lock := _lock(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)


def save(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file.

    Raises:
        OSError: it cannot be written; the error has the name of the file.
    """
    try:
        with path.open("wb") as file:
            np.save(file, array)
    except OSError as error:  # NumPy's error lacks the reason
        code = error.errno or errno.ENOSPC
        raise OSError(code, f"{os.strerror(code)}{small_limits()}", str(path)) from error


@dataclass(frozen=True)
class Operands:
    """The inputs of a problem and its float64 output, as files of a folder.

    `x`, `weights` and `add` are as in `random_operands`, or for integers as in `trial_operands`;
    `bias` is packed as kernels read it. `reference` is the true output, `stored` for integers the
    output that kernels store. Without a folder, another machine makes the same files.
    """

    problem: str
    folder: Path = Path()

    @property
    def here(self) -> bool:
        """Whether the files are on this machine."""
        return self.folder != Path()

    @classmethod
    def make(
        cls,
        p: Problem,
        scratch: Scratch,
        seed: int = 0,
        given: Mapping[str, NDArray[Any]] | None = None,
    ) -> Operands:
        """Write the files. Operands are random unless `given`; those that `p` lacks are zero.

        Raises:
            OSError: no folder has room for them.
        """
        if isinstance(p, ConvProblem) and p.precision.integer:
            arrays = _integers(p, seed)
        else:
            arrays = _floats(p, seed, given)
        name = hashlib.sha256(f"{p} {seed}".encode()).hexdigest()[:16]
        room = sum(a.nbytes for a in arrays.values()) + _PACKED * arrays["weights"].nbytes
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=scratch.room(room)))
        for key, array in arrays.items():
            save(folder / f"{key}.npy", array)
        return cls(str(p), folder)

    def discard(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder)

    def load(self, name: str) -> NDArray[Any]:
        """One of x, weights, bias, add, reference, stored, read-only."""
        return _load(self.folder / f"{name}.npy")

    def pack(self, name: str, where: Placement) -> NDArray[Any]:
        """`x` or `add` in the layout of a kernel's buffer, read-only."""
        return _pack(self, name, where)

    def poison(self, where: Placement) -> NDArray[Any]:
        """What an output's buffer holds before a kernel writes it: NaN, or wrong integers."""
        return _poison(self, where)

    def compare(
        self, found: NDArray[Any], expected: float, limit: float
    ) -> tuple[Errors, str | None]:
        """The error of an output (n, oc, oh, ow), and in one line why it is wrong, if it is.

        Errors of floats are relative to the outputs' rms. `limit` is the largest allowed; for other
        types than float32, twelve times the rms `expected` of the algorithm if that is more. Errors
        of u8 are in steps, beyond those of rounding; their rms is at most `STEPS`. An algorithm
        without error must give the exact result to the bit, except after exponentials.
        """
        p, exact = parse_problem(self.problem), self.load("reference")
        if p.precision.dst is U8:
            rms, largest = steps_off(found, exact)
            errors = Errors(largest, rms, float((found - exact).mean()))
        else:
            errors = Errors.of(found, exact, self.scale())
        if np.isinf(errors.max):
            bad = found.size - np.isfinite(found).sum()
            return errors, f"{bad} of {found.size} outputs are unwritten or not finite"
        if isinstance(p, ConvProblem) and expected == 0 and p.precision.integer and is_exact(p):
            wrong = np.count_nonzero(found != self.load("stored"))
            return errors, f"{wrong} of {found.size} outputs are not exact" if wrong else None
        if p.precision.dst is U8:
            bad = errors.max > 1 or errors.rms > STEPS
            return errors, (
                f"an output is off by {errors.max:.0f} steps, rms {errors.rms:.2g} of {STEPS}"
                if bad
                else None
            )
        if p.types:
            limit = max(limit, 12 * expected)
        if errors.max > limit:
            return errors, f"an output is off by {errors.max:.2g} of their rms; limit {limit:.2g}"
        return errors, None

    def scale(self) -> float:
        """The root mean square of the reference; 1 if it is all zero."""
        return _rms(self.folder / "reference.npy") or 1.0


def _floats(
    p: Problem, seed: int, given: Mapping[str, NDArray[Any]] | None
) -> dict[str, NDArray[Any]]:
    arrays = dict(given or random_operands(p, seed))
    for name in ("bias", "add"):
        if not getattr(p, name):
            arrays[name] = np.zeros_like(arrays[name])
    types = p.precision
    for name, dtype in (("x", types.src), ("add", types.dst)):
        arrays[name] = dtype.decode(dtype.encode(arrays[name]))
    arrays["reference"] = truth(p, arrays)
    arrays["bias"] = pack_bias(arrays["bias"])
    return arrays


def _integers(p: ConvProblem, seed: int) -> dict[str, NDArray[Any]]:
    arrays, scales = trial_operands(p, seed)
    bias = arrays["bias"] if p.bias else None
    add = arrays["add"] if p.add else None
    sums = scales.sums(p, arrays["x"], arrays["weights"], bias)
    arrays["reference"] = scales.truth(p, sums, add)
    arrays["stored"] = scales.stored(p, sums, add)
    arrays["bias"] = scales.operand(p, arrays["weights"], bias)
    return arrays


# A worker runs many schedules of one problem in a row.
@functools.lru_cache(16)
def _load(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


@functools.lru_cache(16)
def _rms(path: Path) -> float:
    return float(np.sqrt(np.square(_load(path)).mean()))


@functools.lru_cache(2)
def _poison(operands: Operands, where: Placement) -> NDArray[Any]:
    """Halo and padding channels hold zeros."""
    if where.dtype is U8:
        return where.pack(operands.load("stored") ^ 0x80)
    shape = where.n, where.c, where.h, where.w
    return where.pack(np.full(shape, np.nan, np.float32))


@functools.lru_cache(4)
def _pack(operands: Operands, name: str, where: Placement) -> NDArray[Any]:
    packed = where.pack(operands.load(name))
    packed.setflags(write=False)
    return packed
