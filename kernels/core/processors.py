"""Processors other than this one: levels to export for, what code needs, what a device has.

A level is an agreed set of instructions, not the set of one machine: an exported network runs on
every processor of the level. Bits are those of CPUID (Intel's and AMD's manuals) and of HWCAP
(Linux, `asm/hwcap.h`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastrun.kernels.core.cpu import Cpu

# LLVM's features by the word of CPUID that tells of each: leaf 1 ECX, leaf 7 EBX, leaf 7 ECX,
# leaf 7.1 EAX, leaf 0x80000001 ECX, leaf 7 EDX.
_WORDS: tuple[dict[str, int], ...] = (
    {"sse3": 0, "ssse3": 9, "fma": 12, "cx16": 13, "sse4.1": 19, "sse4.2": 20, "movbe": 22,
     "popcnt": 23, "aes": 25, "avx": 28, "f16c": 29},
    {"bmi": 3, "avx2": 5, "bmi2": 8, "avx512f": 16, "avx512dq": 17, "avx512ifma": 21,
     "avx512cd": 28, "avx512bw": 30, "avx512vl": 31},
    {"avx512vbmi": 1, "avx512vbmi2": 6, "gfni": 8, "avx512vnni": 11, "avx512bitalg": 12,
     "avx512vpopcntdq": 14},
    {"avxvnni": 4, "avx512bf16": 5},
    {"lzcnt": 5},
    {"amx-bf16": 22, "avx512fp16": 23, "amx-tile": 24, "amx-int8": 25},
)  # fmt: skip
_HWCAP = {"neon": 1, "fullfp16": 10, "dotprod": 20}
_HWCAP2 = {"i8mm": 13, "bf16": 14}
# RISC-V's has a bit for each letter. `zvl256b` says that registers have 256 bits at least.
_RISCV = {letter: ord(letter) - ord("a") for letter in "mafdcv"}
_WIDER = {"zvl256b": 256, "zvl512b": 512}

# Registers that the system must save: of 256 bits, of 512 bits with their masks, and tiles.
_YMM, _ZMM, _TILES = 0x06, 0xE6, 0x60000

_LEVELS = {
    "x86-64-v2": ("cx16", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2"),
    "x86-64-v3": ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}

# What `x86-64-v4+NAME` has beside the level. All processors with AMX have the rest of it.
_EXTRAS = {
    "vnni": ("avx512vnni",),
    "amx": ("avx512vnni", "avx512bf16", "amx-tile", "amx-int8", "amx-bf16"),
}

NAMES = (
    *_LEVELS, *(f"x86-64-v4+{extra}" for extra in _EXTRAS), "aarch64", "aarch64+dotprod",
    "riscv64gcv", "riscv64gcv+zvl256b", "native",
)  # fmt: skip
"""The names of targets; `native` is this machine."""


@dataclass(frozen=True)
class Needs:
    """What a processor must say of itself: words of CPUID and the saved state, or HWCAP.

    `vlen` are bits of RISC-V's vector registers.
    """

    x86: tuple[int, ...] = (0,) * (len(_WORDS) + 1)
    hwcap: int = 0
    vlen: int = 0

    @property
    def tiles(self) -> bool:
        """Whether the system must let the process use tile registers (`core.tiles`)."""
        return bool(self.x86[-1] & _TILES)


def target(name: str) -> Cpu:
    """The processor to build for.

    Caches of levels are guesses: they decide sizes of blocks, and a plan may say better.

    Raises:
        ValueError: there is no such target.
    """
    if name == "native":
        return _known_features(Cpu.host())
    if name not in NAMES:
        raise ValueError(f"unknown target {name!r}: use {', '.join(NAMES)}")
    base, _, extra = name.partition("+")
    if base == "aarch64":
        return replace(baseline(base), features="+dotprod" if extra else "")
    if base == "riscv64gcv":
        return riscv64(_WIDER.get(extra, 128), model=f"generic {name}")
    if base == "x86-64-v2":
        generic = replace(Cpu.avx2(), name="x86-64-v2", model="generic x86-64-v2", fma=False)
        return replace(generic, lanes=4)
    cpu = Cpu.avx512() if base == "x86-64-v4" else Cpu.avx2()
    more = (f"+{feature}" for feature in _EXTRAS.get(extra, ()))
    return replace(cpu, features=",".join(filter(None, (cpu.features, *more))))


def baseline(machine: str) -> Cpu:
    """What every processor of an architecture has, to build what runs before features are asked."""
    if machine == "aarch64":
        return replace(Cpu.neon(), name="generic", model="generic aarch64", features="")
    if machine == "riscv64":
        without = Cpu.rvv().features.replace(",+v", "")
        return replace(Cpu.rvv(), model="generic riscv64", features=without)
    generic = replace(Cpu.avx2(), name="x86-64", model="generic x86-64", fma=False)
    return replace(generic, lanes=4)


def features_of(cpu: Cpu) -> set[str]:
    """LLVM's features that a processor has: those of its feature string and those of its level."""
    found = {f[1:] for f in cpu.features.split(",") if f.startswith("+")}
    if cpu.name in _LEVELS:
        levels = list(_LEVELS)
        found |= {f for x in levels[: levels.index(cpu.name) + 1] for f in _LEVELS[x]}
    return found


def needs(cpu: Cpu) -> Needs:
    """What code for `cpu` needs of the processor that runs it."""
    has = features_of(cpu)
    if cpu.machine == "riscv64":
        bits = sum(1 << bit for f, bit in _RISCV.items() if f in has)
        return Needs(hwcap=bits, vlen=32 * cpu.lanes)
    if cpu.machine == "aarch64":
        has |= {"neon"}
        return Needs(hwcap=sum(1 << bit for f, bit in _HWCAP.items() if f in has))
    words = [sum(1 << bit for f, bit in word.items() if f in has) for word in _WORDS]
    state = _ZMM if "avx512f" in has else _YMM if "avx" in has else 0
    if _of_tiles(has):
        state |= _TILES
    return Needs(x86=(*words, state))


LEAVES = ((1, 0, 2), (7, 0, 1), (7, 0, 2), (7, 1, 0), (0x80000001, 0, 2), (7, 0, 3))
"""Leaf, sub-leaf and register (EAX to EDX) of each word of CPUID."""


def without_tiles(cpu: Cpu) -> Cpu:
    """The processor without tile registers (AMX), for a system that does not let them be used."""
    off = _of_tiles(features_of(cpu))
    kept = (f"-{f[1:]}" if f[1:] in off else f for f in cpu.features.split(","))
    return replace(cpu, features=",".join(kept))


def _of_tiles(features: set[str]) -> set[str]:
    return {f for f in features if f.startswith("amx-")}


def x86_64(words: Sequence[int], state: int, permitted: bool = False, **facts: Any) -> Cpu:
    """The processor whose CPUID gives these words; `state` is what its system saves (XGETBV).

    Tile registers count if the system has `permitted` to use them. `facts` are the model, sizes of
    caches and number of cores.
    """
    held = {f for word, bits in zip(words, _WORDS, strict=True) for f, b in bits.items()
            if word >> b & 1}  # fmt: skip
    if state & _ZMM != _ZMM:
        held = {f for f in held if not f.startswith("avx512")}
    if state & _YMM != _YMM:
        held -= {"avx", "avx2", "f16c", "fma", "avxvnni"}
    if state & _TILES != _TILES or not permitted:
        held -= _of_tiles(held)
    level, has = "x86-64", {"sse2"}
    for name, features in _LEVELS.items():
        if not held >= set(features):
            break
        level, has = name, has | set(features)
    # Below AVX2 kernels have four lanes, whatever else there is.
    named = held if level >= "x86-64-v3" else has
    start = ["-prefer-256-bit"] if level == "x86-64-v4" else []
    cpu = target(level if level in NAMES else "x86-64-v2")
    text = ",".join([*start, *(f"+{f}" for f in sorted(named))])
    return replace(cpu, name=level, features=text, **facts)


def aarch64(features: Sequence[str], **facts: Any) -> Cpu:
    """The processor with these features of LLVM's, beside those that all have; see `x86_64`."""
    named = ",".join(f"+{f}" for f in sorted({"neon", *features}))
    return replace(target("aarch64"), features=named, **facts)


def riscv64(vlen: int, **facts: Any) -> Cpu:
    """The RISC-V processor whose vector registers have so many bits; see `x86_64`.

    Code uses 512 bits of longer ones.
    """
    wider = [f for f, bits in _WIDER.items() if vlen >= bits]
    cpu = Cpu.rvv()
    features = ",".join([cpu.features, *(f"+{f}" for f in wider)])
    return replace(cpu, features=features, lanes=min(vlen, 512) // 32, **facts)


def has_vectors(hwcap: int) -> bool:
    """Whether a RISC-V processor has what all code for it needs, the vector extension too."""
    return all(hwcap >> bit & 1 for bit in _RISCV.values())


def vectors(features: str) -> tuple[str, int]:
    """The architecture that a feature string is of, and its lanes of float32."""
    held = {f[1:] for f in features.split(",") if f.startswith("+")}
    if held & {"neon", "fp-armv8"}:
        return "aarch64", 4
    if "v" in held:
        return "riscv64", max((bits for f, bits in _WIDER.items() if f in held), default=128) // 32
    if held >= {"avx512f", "avx512vl"}:
        return "x86_64", 16
    return "x86_64", 8 if "avx2" in held else 4


def aarch64_features(hwcap: int, hwcap2: int) -> list[str]:
    """The features that the system promises; a device may lack one all the same."""
    promised = [f for f, bit in _HWCAP.items() if hwcap >> bit & 1 and f != "neon"]
    return promised + [f for f, bit in _HWCAP2.items() if hwcap2 >> bit & 1]


def _known_features(cpu: Cpu) -> Cpu:
    """The processor without the features that an exported library could not ask for."""
    if cpu.machine != "x86_64":
        return cpu
    known = {f for word in _WORDS for f in word} | {"sse", "sse2", "mmx", "fxsr", "cx8", "64bit"}
    kept, off = [], []
    for feature in cpu.features.split(","):
        if feature.startswith("+") and feature[1:] in known:
            kept.append(feature)
        elif feature.startswith("+"):
            off.append(f"-{feature[1:]}")
        else:
            off.append(feature)
    return replace(cpu, features=",".join([*kept, *off]))
