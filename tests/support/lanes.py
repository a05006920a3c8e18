"""Processors of 4, 8 and 16 lanes to build kernels for, as far as this machine can run them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastrun.kernels.core.cpu import Cpu

# The vectors and registers of NEON, AVX2 and AVX-512.
CPUS = [
    replace(Cpu.host(), lanes=lanes, registers=registers)
    for lanes, registers in ((4, 32), (8, 16), (16, 32))
]


def without_tiles(cpu: Cpu) -> Cpu:
    """The processor without tile registers: for tests of what is chosen for vectors."""
    features = (x for x in cpu.features.split(",") if not x.startswith("+amx"))
    return replace(cpu, features=",".join(features))


RUN_HERE = [cpu for cpu in CPUS if cpu.lanes <= Cpu.host().lanes]

# Parameters for kernels that name vector registers; LLVM splits all other vectors that are too
# wide for this machine.
EVERY_CPU = [
    pytest.param(
        cpu,
        id=f"{cpu.lanes} lanes",
        marks=pytest.mark.skipif(cpu not in RUN_HERE, reason=f"no vectors of {cpu.lanes} lanes"),
    )
    for cpu in CPUS
]


def cpus(cpu: Cpu) -> str:
    """The parameter's name in a test's."""
    return f"{cpu.lanes} lanes"


# A processor with tile registers.
TILES = replace(
    Cpu.avx512(), features=f"{Cpu.avx512().features},+amx-tile,+amx-int8,+amx-bf16,+avx512bf16"
)
