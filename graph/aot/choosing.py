"""Which of a library's kinds of code runs: the first that the processor and its system support."""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.graph.aot.layout import Variant
from fastrun.kernels.core.processors import LEAVES
from fastrun.kernels.core.tiles import ARCH_PRCTL, REQUEST, TILE_DATA


def supported(triple: str, variants: Sequence[Variant]) -> str:
    """Whether the processor has what variant `%number` needs."""
    machine = triple.partition("-")[0]
    if machine == "x86_64":
        return _x86_supported(variants)
    if machine == "riscv64":
        return _riscv_supported(variants)
    asks = "\n".join(
        f"  %held{i} = and i64 %word, {v.needs.hwcap}\n"
        f"  %has{i} = icmp eq i64 %held{i}, {v.needs.hwcap}\n"
        f"  %here{i} = icmp eq i64 %number, {i}\n"
        f"  %ok{i} = select i1 %here{i}, i1 %has{i}, i1 {f'%ok{i - 1}' if i else 'false'}"
        for i, v in enumerate(variants)
    )
    return f"""declare i64 @getauxval(i64)

define internal i1 @supported(i64 %number) nounwind {{
  %word = call i64 @getauxval(i64 16)
{asks}
  ret i1 %ok{len(variants) - 1}
}}"""


def _riscv_supported(variants: Sequence[Variant]) -> str:
    """HWCAP, and then the length of vector registers, which only such a processor can tell."""
    rows = ", ".join(f"[2 x i64] [i64 {v.needs.hwcap}, i64 {v.needs.vlen}]" for v in variants)
    return f"""declare i64 @getauxval(i64)
declare i64 @llvm.vscale.i64()

@needs = internal constant [{len(variants)} x [2 x i64]] [{rows}]

define internal i64 @vlen() nounwind noinline "target-features"="+v" {{
  %parts = call i64 @llvm.vscale.i64()
  %bits = mul i64 %parts, 64
  ret i64 %bits
}}

define internal i1 @supported(i64 %number) nounwind {{
  %word = call i64 @getauxval(i64 16)
  %letters.at = getelementptr [2 x i64], ptr @needs, i64 %number, i64 0
  %letters = load i64, ptr %letters.at, align 8
  %held = and i64 %word, %letters
  %has = icmp eq i64 %held, %letters
  br i1 %has, label %ask, label %no
ask:
  %bits = call i64 @vlen()
  %least.at = getelementptr [2 x i64], ptr @needs, i64 %number, i64 1
  %least = load i64, ptr %least.at, align 8
  %long = icmp uge i64 %bits, %least
  ret i1 %long
no:
  ret i1 false
}}"""


def _x86_supported(variants: Sequence[Variant]) -> str:
    """CPUID leaf by leaf, and XGETBV: the system must keep the registers of wide vectors.

    For a variant with tile registers it must also permit them to this process.
    """
    count = len(LEAVES) + 1
    rows = ", ".join(
        f"[{count} x i32] [{', '.join(f'i32 {_signed(word)}' for word in v.needs.x86)}]"
        for v in variants
    )
    lines = ["  %most = call { i32, i32, i32, i32 } @cpuid(i32 0, i32 0)"]
    lines.append("  %leaves = extractvalue { i32, i32, i32, i32 } %most, 0")
    for i, (leaf, sub, register) in enumerate(LEAVES):
        lines += [
            f"  %leaf{i} = call {{ i32, i32, i32, i32 }} @cpuid(i32 {_signed(leaf)}, i32 {sub})",
            f"  %raw{i} = extractvalue {{ i32, i32, i32, i32 }} %leaf{i}, {register}",
            f"  %there{i} = icmp uge i32 %leaves, {leaf if leaf < 8 else 0}",
            f"  %word{i} = select i1 %there{i}, i32 %raw{i}, i32 0",
        ]
    checks = []
    for i in range(count):
        checks += [
            f"  %need{i}.at = getelementptr [{count} x i32], ptr @needs, i64 %number, i64 {i}",
            f"  %need{i} = load i32, ptr %need{i}.at, align 4",
            f"  %held{i} = and i32 %need{i}, %{'state' if i == len(LEAVES) else f'word{i}'}",
            f"  %has{i} = icmp eq i32 %held{i}, %need{i}",
            f"  %all{i} = and i1 %has{i}, {f'%all{i - 1}' if i else 'true'}",
        ]
    body = "\n".join(lines)
    with_tiles = [i for i, v in enumerate(variants) if v.needs.tiles]
    end = (
        _permitted(with_tiles, f"%all{len(LEAVES)}")
        if with_tiles
        else (f"  ret i1 %all{len(LEAVES)}")
    )
    return f"""@needs = internal constant [{len(variants)} x [{count} x i32]] [{rows}]

define internal {{ i32, i32, i32, i32 }} @cpuid(i32 %leaf, i32 %sub) nounwind {{
  %found = call {{ i32, i32, i32, i32 }} asm
      "cpuid", "={{ax}},={{bx}},={{cx}},={{dx}},{{ax}},{{cx}}"(i32 %leaf, i32 %sub)
  ret {{ i32, i32, i32, i32 }} %found
}}

define internal i1 @supported(i64 %number) nounwind {{
entry:
{body}
  %saved.bit = and i32 %word0, 134217728
  %saved = icmp ne i32 %saved.bit, 0
  br i1 %saved, label %ask, label %asked
ask:
  %pair = call {{ i32, i32 }} asm "xgetbv", "={{ax}},={{dx}},{{cx}}"(i32 0)
  %kept = extractvalue {{ i32, i32 }} %pair, 0
  br label %asked
asked:
  %state = phi i32 [ 0, %entry ], [ %kept, %ask ]
{chr(10).join(checks)}
{end}
}}"""


def _permitted(with_tiles: Sequence[int], able: str) -> str:
    """The end of `supported`: variants with tile registers ask Linux for them, once able."""
    cases = " ".join(f"i64 {i}, label %with.tiles" for i in with_tiles)
    return f"""  switch i64 %number, label %answer [ {cases} ]
with.tiles:
  br i1 {able}, label %request, label %answer
request:
  %refused = call i64 asm sideeffect
      "syscall", "={{ax}},{{ax}},{{di}},{{si}},~{{rcx}},~{{r11}},~{{memory}}"
      (i64 {ARCH_PRCTL}, i64 {REQUEST}, i64 {TILE_DATA})
  %permitted = icmp eq i64 %refused, 0
  ret i1 %permitted
answer:
  ret i1 {able}"""


def _signed(word: int) -> int:
    """A word of 32 bits as LLVM writes it."""
    return word - (1 << 32) * (word >> 31)


def choose(count: int) -> str:
    """The variant wanted, or the first that the processor supports if -1 is wanted.

    -1 if the processor supports none, -2 if there is none of this number.
    """
    return f"""define internal i64 @choose(i32 %wanted) nounwind {{
entry:
  %asked = icmp ne i32 %wanted, -1
  %known = icmp ult i32 %wanted, {count}
  %number = sext i32 %wanted to i64
  br i1 %asked, label %named, label %look
named:
  br i1 %known, label %try, label %unknown
try:
  %runs = call i1 @supported(i64 %number)
  br i1 %runs, label %this, label %none
this:
  ret i64 %number
look:
  %i = phi i64 [ 0, %entry ], [ %next, %other ]
  %fits = call i1 @supported(i64 %i)
  br i1 %fits, label %first, label %other
first:
  ret i64 %i
other:
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, {count}
  br i1 %more, label %look, label %none
none:
  ret i64 -1
unknown:
  ret i64 -2
}}"""
