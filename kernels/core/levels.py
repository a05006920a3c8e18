"""Levels of blocking: which block of an algorithm is sized for which level of memory.

A kernel is a nest of loops. What one loop reads again and again should still be where the loop
outside it left it, in registers, L1, L2 or L3. So every blocked algorithm has for each level a
block of data that stays there, and a formula for its size (Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", 2008; Low et al., "Analytical Modeling Is Enough for
High-Performance BLIS", 2016). What only passes through a level is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32

LEVELS = ("registers", "L1", "L2", "L3")

# Bytes that a product reads in a cycle of a core from L3 and from memory. `fastrun doctor` measures
# 27 and 8 on Zen 3 and Zen 4 (100 and 31 GB/s at 3.7 GHz); beside products it is a little less.
FROM_L3, FROM_MEMORY = 23, 8


@dataclass(frozen=True)
class Block:
    """A block of an algorithm that stays in a level of memory.

    `fields` are those of the schedule that size it, `holds` says what it is and `formula` how the
    heuristic sizes it. `size` is in bytes.
    """

    level: str  # one of LEVELS
    fields: str
    holds: str
    formula: str
    size: int

    def share(self, cpu: Cpu) -> float:
        """The size as a share of the level's."""
        return self.size / room(cpu, self.level)


def room(cpu: Cpu, level: str) -> int:
    """Bytes of a level: of all vector registers, or of a cache.

    Where a processor has no L3, or none is known, L2 is the last cache.
    """
    sizes = {"L1": cpu.l1, "L2": cpu.l2, "L3": max(cpu.l3, cpu.l2)}
    return sizes.get(level) or F32.bytes(cpu.registers * cpu.lanes)


def reading(cpu: Cpu, size: int) -> float:
    """The multiply-adds that a core could do while it reads a float32 of `size` bytes in turn.

    A quarter of L3 keeps what it has read. Of more, ever less is found there, since other cores
    need it too; what exceeds L3 comes from memory.
    """
    last = room(cpu, "L3")
    near = min(1.0, max(0.0, (last - size) / (last - last // 4)))
    return F32.bytes(cpu.multiply_adds) * (near / FROM_L3 + (1 - near) / FROM_MEMORY)


def register_tile(cpu: Cpu, fields: str, registers: int, holds: str) -> Block:
    """The block of every product: sums, and the operands of a step."""
    formula = "fewest cycles for the whole output, by FMAs and loads"
    return Block("registers", fields, holds, formula, F32.bytes(registers * cpu.lanes))
