"""What the compiler made of a kernel, read from its assembly."""

from __future__ import annotations

import re
from dataclasses import dataclass

import llvmlite.binding as llvm

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.program import Program
from fastrun.kernels.native.compile import compile_assembly, compile_object

_LABEL = re.compile(r"^(\.L\w+):")
_JUMP = re.compile(r"^\s+(?:j\w+|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,|b)\s+(\.L\w+)")
_VECTOR = re.compile(r"%[xyz]mm(\d+)|\bv(\d+)\.")
_STACK = re.compile(r"\(%r[sb]p|\[sp\b|\[x29\b")
_MEMORY = re.compile(r"^\s+(?!lea)\w+\s.*(?:\(%r|\[(?:x\d|sp))")
_FMA = re.compile(
    r"^\s+(?:vfn?m(?:add|sub)\w+ps|fml[as]|vpmadd(?:ubsw|wd)|vpdp\w+|vdpbf16ps|u?s?dot|[us]mmla)\b"
)
_TILES = re.compile(r"^\s+tdp\w+\b")
_TILE_MOVE = re.compile(r"^\s+tile(?:load\w+|stored)\b")
_ROWS = 16  # that a tile has at most: a product takes a cycle for each


@dataclass(frozen=True)
class Facts:
    """`hot_loop` is the innermost loop with products; the counts are of that loop.

    Products of small types count as FMAs, `tiles` are products of tile registers. Each row that is
    moved between memory and a tile is a memory reference. Stack references in the loop mean that
    registers spill. `code_bytes` is the whole kernel.
    """

    hot_loop: str
    fmas: int
    instructions: int
    memory_references: int
    vector_registers: int
    stack_references: int
    code_bytes: int
    tiles: int = 0

    @property
    def bound(self) -> float:
        """The share of the peak rate of products that the hot loop cannot exceed, with data in L1.

        For a core that starts two FMAs, two memory references and four instructions in a cycle, and
        a product of tiles in sixteen.
        """
        products = self.fmas + 2 * _ROWS * self.tiles
        cycles = max(products, self.memory_references, self.instructions / 2)
        return products / cycles if cycles else 0.0


def facts(program: Program, cpu: Cpu) -> Facts:
    """Compile `program` and read its assembly: takes milliseconds, too many for every trial."""
    loop = hot_loop(compile_assembly(program.ir, cpu))
    return Facts(
        hot_loop="\n".join(loop),
        fmas=sum(1 for line in loop if _FMA.match(line)),
        instructions=sum(1 for line in loop if line.startswith("\t")),
        memory_references=sum(
            _ROWS if _TILE_MOVE.match(line) else 1 for line in loop if _MEMORY.match(line)
        ),
        vector_registers=len({a or b for line in loop for a, b in _VECTOR.findall(line)}),
        stack_references=sum(1 for line in loop if _STACK.search(line)),
        code_bytes=_text_bytes(compile_object(program.ir, cpu)),
        tiles=sum(1 for line in loop if _TILES.match(line)),
    )


def hot_loop(assembly: str) -> list[str]:
    """The lines of the innermost loop with products; of several such loops the one with most.

    Empty if there is no loop.
    """
    # A comment begins with # and a blank; the # of an AArch64 immediate has no blank behind it.
    lines = [re.sub(r"\s*(?:##? |//).*$", "", line) for line in assembly.splitlines()]
    lines = [line for line in lines if line and not re.match(r"\s+\.", line)]
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for number, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = number
        elif (jump := _JUMP.match(line)) and jump[1] in labels:
            loops.append((labels[jump[1]], number))

    def rank(loop: tuple[int, int]) -> tuple[bool, int, int]:
        start, end = loop
        products = sum(_products(line) for line in lines[start : end + 1])
        depth = sum(1 for s, e in loops if s <= start and end <= e)
        return products > 0, depth, products

    start, end = max(loops, key=rank, default=(0, -1))
    return lines[start : end + 1]


def _products(line: str) -> int:
    """The weight of an instruction that multiplies: that of its products."""
    return 2 * _ROWS if _TILES.match(line) else int(_FMA.match(line) is not None)


def _text_bytes(payload: bytes) -> int:
    """Bytes of machine code in an object."""
    sections = llvm.ObjectFileRef.from_data(payload).sections()
    return sum(s.size() for s in sections if s.is_text())
