"""The data candidates are fed and judged by: made once per problem, shared through files."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.core.layout import Array, Placement
from kernels.core.problem import ConvProblem
from kernels.core.reference import convolve, random_operands
from kernels.core.template import pack_bias


class Scratch:
    """A folder for the files of one run, in memory where the system offers that; a context.

    Everything in it is gone when the context ends. What a killed process left is removed by the
    next one.
    """

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        usable = memory.is_dir() and os.access(memory, os.W_OK)
        root = memory if usable else Path(tempfile.gettempdir())
        for left in root.glob("fastrun-*-*"):
            if not Path("/proc", left.name.split("-")[1]).exists():
                shutil.rmtree(left, ignore_errors=True)  # or it is somebody else's
        self.folder = Path(tempfile.mkdtemp(prefix=f"fastrun-{os.getpid()}-", dir=root))

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)


@dataclass(frozen=True)
class Operands:
    """One problem's inputs and the float64 output they must give, as files of a folder.

    `x`, `weights` and `add` are as in `random_operands`, `bias` is as kernels read it. Without a
    folder they are the business of another machine, which makes the same.
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
        p: ConvProblem,
        scratch: Scratch,
        seed: int = 0,
        given: Mapping[str, NDArray[Any]] | None = None,
    ) -> Operands:
        """Write the files, random operands unless `given`; an operand `p` lacks is zero.

        Raises:
            OSError: the scratch folder is full.
        """
        arrays = dict(given or random_operands(p, seed))
        for name in ("bias", "add"):
            if not getattr(p, name):
                arrays[name] = np.zeros_like(arrays[name])
        arrays["reference"] = convolve(p, **arrays)
        arrays["bias"] = pack_bias(arrays["bias"])
        name = hashlib.sha256(f"{p} {seed}".encode()).hexdigest()[:16]
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=scratch.folder))
        for key, array in arrays.items():
            np.save(folder / f"{key}.npy", array)
        return cls(str(p), folder)

    def discard(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder)

    def load(self, name: str) -> NDArray[Any]:
        """One of x, weights, bias, add, reference; read-only."""
        return _load(self.folder / f"{name}.npy")

    def pack(self, name: str, where: Placement) -> Array:
        """`x` or `add` as it lies in a kernel's buffer; read-only."""
        return _pack(self, name, where)

    def scale(self) -> float:
        """The root mean square of the reference; 1 where that is all zero."""
        return _rms(self.folder / "reference.npy") or 1.0


# A worker sees many candidates of one problem in a row.
@functools.lru_cache(16)
def _load(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


@functools.lru_cache(16)
def _rms(path: Path) -> float:
    return float(np.sqrt(np.square(_load(path)).mean()))


@functools.lru_cache(4)
def _pack(operands: Operands, name: str, where: Placement) -> Array:
    packed = where.pack(operands.load(name))
    packed.setflags(write=False)
    return packed
