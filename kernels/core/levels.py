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


def register_tile(cpu: Cpu, fields: str, registers: int, holds: str) -> Block:
    """The block of every product: sums, and the operands of a step."""
    formula = "fewest cycles for the whole output, by FMAs and loads"
    return Block("registers", fields, holds, formula, F32.bytes(registers * cpu.lanes))
