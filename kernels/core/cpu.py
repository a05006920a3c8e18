"""The processor a kernel is built for: vector width, registers, caches, features."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from fastrun.kernels.core.dtype import F32, DType
from fastrun.kernels.core.tiles import permitted

CACHE_LINE = 64  # bytes

# Bytes of L3 that a program can count on, however many the system reports: a larger one is shared
# by the cores of a whole server.
_USABLE_L3 = 64 << 20


def whole_lines(count: int, dtype: DType = F32) -> int:
    """`count` elements, rounded up to whole cache lines."""
    line = dtype.count(CACHE_LINE)
    return -(-count // line) * line


@dataclass(frozen=True)
class Cpu:
    """A target. Sizes in bytes; `features` is LLVM's feature string.

    `lanes` is the number of float32 per vector register, `registers` the number of those. Without
    `fma` products are multiplied and added by two instructions.
    """

    model: str
    triple: str
    name: str
    features: str
    lanes: int
    registers: int
    l1: int
    l2: int
    l3: int
    cores: int
    fma: bool = True

    @property
    def machine(self) -> str:
        """The architecture: `x86_64`, `aarch64` or `riscv64`."""
        return self.triple.partition("-")[0]

    @property
    def block(self) -> int:
        """Channels of a block that fills vectors, in a layout with blocks."""
        return min(16, max(4, self.lanes))

    @property
    def halves(self) -> bool:
        """Whether half a vector takes half of the time: the units compute a vector in two halves.

        Zen 4 does (AMD, Software Optimization Guide for the Zen4 Microarchitecture).
        """
        return self.lanes == 16 and self.name == "znver4"

    @property
    def usable_l3(self) -> int:
        """Bytes of L3 that a program finds its data in again: all, at most 64 MB.

        A guest with two cores of many sees the cache of its whole host and can fill a part of it.
        What passes this size before data is used again decides where that data comes from.
        """
        return min(self.l3, _USABLE_L3)

    def lanes_for(self, count: int) -> int:
        """Lanes of the narrowest vector for `count` elements, at most all."""
        return min(self.lanes, 1 << (count - 1).bit_length())

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of everything about the processor that a measurement depends on."""
        parts = (self.model, self.name, self.features, self.l1, self.l2, self.l3)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def wide(self, dtype: DType) -> int:
        """Elements of a type in a vector register; of float32 these are `lanes`."""
        return self.lanes * F32.bits // dtype.bits

    @classmethod
    @functools.cache
    def host(cls) -> Cpu:
        """This machine, as LLVM and the cache tables of Linux describe it.

        Tile registers (AMX) count only where the system lets this process use them.
        """
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        triple, features = llvm.get_process_triple(), llvm.get_host_cpu_features()
        lanes, registers = _vectors(triple, {f for f, on in features.items() if on})
        if features.get("amx-tile") and not permitted():
            features.update((f, False) for f in features if f.startswith("amx-"))
        caches = _caches()
        return cls(
            model=_model_name(),
            triple=triple,
            name=llvm.get_host_cpu_name(),
            features=features.flatten(),
            lanes=lanes,
            registers=registers,
            l1=caches.get(1, 32 << 10),
            l2=caches.get(2, 512 << 10),
            l3=caches.get(3, 0),
            cores=len(os.sched_getaffinity(0)),
            fma=not triple.startswith("x86_64") or bool(features.get("fma")),
        )

    @classmethod
    def avx2(cls) -> Cpu:
        """A generic x86-64 with AVX2 and FMA, to build for."""
        return _generic("x86_64-unknown-linux-gnu", "x86-64-v3", "", 8, 16)

    @classmethod
    def avx512(cls) -> Cpu:
        """A generic x86-64 with AVX-512, to build for."""
        return _generic("x86_64-unknown-linux-gnu", "x86-64-v4", "-prefer-256-bit", 16, 32)

    @classmethod
    def neon(cls) -> Cpu:
        """A generic AArch64 server core, to build for."""
        return _generic("aarch64-unknown-linux-gnu", "neoverse-n1", "+dotprod", 4, 32)

    @classmethod
    def rvv(cls) -> Cpu:
        """A generic RISC-V with the vector extension and registers of 128 bits or more."""
        features = "+m,+a,+f,+d,+c,+v,+zihintpause"
        return _generic("riscv64-unknown-linux-gnu", "generic-rv64", features, 4, 32)


def _generic(triple: str, name: str, features: str, lanes: int, registers: int) -> Cpu:
    return Cpu(
        model=f"generic {name}",
        triple=triple,
        name=name,
        features=features,
        lanes=lanes,
        registers=registers,
        l1=32 << 10,
        l2=512 << 10,
        l3=16 << 20,
        cores=1,
    )


def _vectors(triple: str, features: set[str]) -> tuple[int, int]:
    """Lanes and registers of the widest float32 vectors that the features offer."""
    if triple.startswith(("aarch64", "arm64")):
        return 4, 32
    if "avx512f" in features and "avx512vl" in features:
        return 16, 32
    return (8, 16) if "avx" in features else (4, 16)


def _model_name() -> str:
    """The name in /proc/cpuinfo, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else os.uname().machine


def _caches() -> dict[int, int]:
    """Level -> bytes of the data or unified cache that the first core sees."""
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "type").read_text().strip() in ("Data", "Unified"):
            size = (index / "size").read_text().strip()
            sizes[int((index / "level").read_text())] = int(size.rstrip("K")) << 10
    return sizes
