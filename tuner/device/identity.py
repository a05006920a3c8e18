"""What a device is: its processor, the type of its cores, caches, system and load.

Features are what the device itself says (CPUID with XGETBV, or HWCAP), and of AArch64 each is tried
once in a child, because there are phones that advertise instructions which trap. A processor with
several types of cores counts as one kind of machine for each type.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from fastrun.kernels.core import processors
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.device.cache_sizes import measured_caches
from fastrun.tuner.device.channel import Operations
from fastrun.tuner.device.reach import DeviceError
from fastrun.tuner.device.session import Child, Session
from fastrun.tuner.measure.process import Died, Garbled
from fastrun.tuner.records.environment import Environment, toolchain

_AT_HWCAP, _AT_HWCAP2 = 16, 26
_CORES_BYTES = 128
_TRIAL_SECONDS = 5.0
_SYSTEM = "/sys/devices/system/cpu"

# Names of cores by implementer and part of MIDR, of Arm's manuals; QEMU has a number of its own.
_PARTS = {
    (0x00, 0x051): "AArch64 by QEMU",
    (0x41, 0xD03): "Cortex-A53", (0x41, 0xD04): "Cortex-A35", (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57", (0x41, 0xD08): "Cortex-A72", (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75", (0x41, 0xD0B): "Cortex-A76", (0x41, 0xD0C): "Neoverse N1",
    (0x41, 0xD0D): "Cortex-A77", (0x41, 0xD40): "Neoverse V1", (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD44): "Cortex-X1", (0x41, 0xD46): "Cortex-A510", (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2", (0x41, 0xD49): "Neoverse N2", (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3", (0x41, 0xD4F): "Neoverse V2", (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720", (0x41, 0xD82): "Cortex-X4",
}  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """A device's processor as seen by `cores`, which are of one type; `warnings` in words."""

    cpu: Cpu
    cores: tuple[int, ...]
    warnings: tuple[str, ...] = ()


def identify(session: Session, wanted: Sequence[int] = ()) -> Identity:
    """What the device is; of several types of cores the fastest, or the one of `wanted` cores.

    Raises:
        DeviceError: the wanted cores cannot be used, or are of several types.
        ConnectionError: the device does not answer.
    """
    usable = _usable(session)
    if missing := [core for core in wanted if core not in usable]:
        have = ",".join(map(str, usable))
        raise DeviceError(f"the device has no core {missing[0]} that may be used: it has {have}")
    types = _types(session, wanted or usable)
    if wanted and len(types) > 1:
        raise DeviceError(
            "the cores named are of several types, whose times say nothing of each other"
        )
    (midr, clock), cores = max(types.items(), key=lambda item: item[0][1])
    warnings = []
    if len(types) > 1:
        said = f"cores {_listed(cores)}" + (f" at {clock / 1e6:.1f} GHz" if clock > 1 else "")
        warnings.append(f"the device has {len(types)} types of cores: measuring on {said}")
    caches = _caches(session, cores[0])
    if not caches:
        caches = measured_caches(session, cores[-1])
        warnings.append("the device says nothing of its caches: their sizes were measured")
    facts = {
        "l1": caches.get(1, 32 << 10), "l2": caches.get(2, 512 << 10), "l3": caches.get(3, 0),
        "cores": len(cores),
    }  # fmt: skip
    refused = list[str]()
    if session.machine == "x86_64":
        cpu = _x86_64(session, facts)
    elif session.machine == "riscv64":
        cpu = _riscv64(session, facts)
    else:
        cpu, refused = _aarch64(session, midr, facts)
    warnings += [f"the device advertises {name}, but its instructions trap" for name in refused]
    return Identity(cpu, tuple(cores), tuple(warnings))


def environment(session: Session, identity: Identity) -> Environment:
    """The device now, as records keep it."""
    cpu, core = identity.cpu, identity.cores[-1]
    load = [*map(float, session.text("/proc/loadavg").split()[:3])]
    memory = re.search(r"MemTotal:\s+(\d+) kB", session.text("/proc/meminfo"))
    pretty = re.search(r'PRETTY_NAME="?([^"\n]*)', session.text("/etc/os-release"))
    here = Environment.host()
    return Environment(
        machine=cpu.fingerprint,
        model=cpu.model,
        features=cpu.features,
        l1=cpu.l1,
        l2=cpu.l2,
        l3=cpu.l3,
        cores=cpu.cores,
        memory=int(memory[1]) << 10 if memory else 0,
        system=pretty[1] if pretty else "",
        kernel=f"Linux {session.text('/proc/sys/kernel/osrelease')}".strip(),
        governor=session.text(f"{_SYSTEM}/cpu{core}/cpufreq/scaling_governor"),
        turbo={"1": "on", "0": "off"}.get(session.text(f"{_SYSTEM}/cpufreq/boost"), ""),
        smt={"1": "on", "0": "off"}.get(session.text(f"{_SYSTEM}/smt/active"), ""),
        cpu_limit=None,
        memory_limit=None,
        load=(load[0], load[1], load[2]) if len(load) == 3 else (0.0, 0.0, 0.0),
        toolchain=toolchain(),
        versions=here.versions,
    )


def _usable(session: Session) -> list[int]:
    asked = session.system(Operations(), "sched_getaffinity", 0, _CORES_BYTES, session.scratch)
    size, held = session.channel.own(asked.peek(session.scratch, _CORES_BYTES))
    word = int.from_bytes(cast(bytes, held)[: max(0, cast(int, size))], "little")
    return [core for core in range(8 * _CORES_BYTES) if word >> core & 1] or [0]


def _types(session: Session, cores: Sequence[int]) -> dict[tuple[str, int], list[int]]:
    """Cores by their type: the identification register and the highest clock.

    x86-64 has no such register; there, good cores of one type have other clocks than the rest, so
    only the smaller cores of hybrid processors are of another type.
    """
    found = dict[tuple[str, int], list[int]]()
    small = _ranges(session.text("/sys/devices/cpu_atom/cpus"))
    for core in cores:
        if session.machine == "x86_64":
            key = ("small", 0) if core in small else ("", 1)
        else:
            midr = session.text(f"{_SYSTEM}/cpu{core}/regs/identification/midr_el1")
            clock = session.text(f"{_SYSTEM}/cpu{core}/cpufreq/cpuinfo_max_freq")
            key = midr, int(clock) if clock.isdigit() else 0
        found.setdefault(key, []).append(core)
    return found


def _ranges(text: str) -> set[int]:
    """Numbers as in `0-3,8`."""
    parts = [part.split("-") for part in text.split(",") if part]
    return {n for first, *last in parts for n in range(int(first), int((last or [first])[0]) + 1)}


def _listed(cores: Sequence[int]) -> str:
    return ",".join(map(str, cores))


def _caches(session: Session, core: int) -> dict[int, int]:
    """Level -> bytes of the data or unified cache that a core sees, as its system says."""
    sizes = dict[int, int]()
    for index in range(8):
        folder = f"{_SYSTEM}/cpu{core}/cache/index{index}"
        kind = session.text(f"{folder}/type")
        if not kind:
            break
        level, size = session.text(f"{folder}/level"), session.text(f"{folder}/size")
        if kind in ("Data", "Unified") and level.isdigit() and size[:-1].isdigit():
            sizes[int(level)] = int(size[:-1]) << {"K": 10, "M": 20}.get(size[-1], 10)
    return sizes


def _x86_64(session: Session, facts: dict[str, int]) -> Cpu:
    model = b"".join(_cpuid(session, leaf, 0) for leaf in (0x80000002, 0x80000003, 0x80000004))
    name = " ".join(model.split(b"\0")[0].decode(errors="replace").split())
    (most,) = struct.unpack_from("<I", _cpuid(session, 0, 0))
    found = []
    for leaf, sub, register in processors.LEAVES:
        there = leaf >= 1 << 31 or leaf <= most
        words = struct.unpack("<4I", _cpuid(session, leaf, sub))
        found.append(words[register] if there else 0)
    saves = found[0] >> 27 & 1
    (state,) = session.channel.own(
        Operations().call(session.function("xgetbv"))) if saves else (0,)  # fmt: skip
    return processors.x86_64(
        found, cast(int, state), session.tiles, model=name or "x86-64", **facts
    )


def _cpuid(session: Session, leaf: int, sub: int) -> bytes:
    asked = Operations().call(session.function("cpuid"), leaf, sub, session.scratch)
    return cast(bytes, session.channel.own(asked.peek(session.scratch, 16))[1])


def _aarch64(session: Session, midr: str, facts: dict[str, int]) -> tuple[Cpu, list[str]]:
    vector = auxiliary(session)
    promised = processors.aarch64_features(vector.get(_AT_HWCAP, 0), vector.get(_AT_HWCAP2, 0))
    refused = [f for f in promised if session.has(f) and not _runs(session, f)]
    word = int(midr, 16) if midr else _midr(session)
    maker, part = word >> 24 & 0xFF, word >> 4 & 0xFFF
    name = _PARTS.get((maker, part), f"AArch64 {maker:#04x} {part:#05x}" if word else "AArch64")
    able = [f for f in promised if f not in refused]
    return processors.aarch64(able, model=name, **facts), refused


def _riscv64(session: Session, facts: dict[str, int]) -> Cpu:
    if not processors.has_vectors(auxiliary(session).get(_AT_HWCAP, 0)):
        raise DeviceError("the device's processor lacks RISC-V's vector extension, as RV64GCV has")
    (size,) = session.channel.own(Operations().call(session.function("vlenb")))
    said = re.search(r"^uarch\s*:\s*(.+)$", session.text("/proc/cpuinfo"), re.MULTILINE)
    vlen = 8 * cast(int, size)
    name = f"{said[1] if said else 'RISC-V'}, vectors of {vlen} bits"
    return processors.riscv64(vlen, model=name, **facts)


def _runs(session: Session, function: str) -> bool:
    """Whether an instruction does not trap, tried in a child."""
    child = Child(session, _TRIAL_SECONDS)
    try:
        child.ask(Operations().call(session.function(function)))
    except (Died, Garbled, TimeoutError):
        return False
    return True


def _midr(session: Session) -> int:
    """The identification register as the system lets programs read it; 0 if it does not."""
    child = Child(session, _TRIAL_SECONDS)
    with suppress(Died, Garbled, TimeoutError):
        (word,) = child.ask(Operations().call(session.function("midr")))
        return cast(int, word)
    return 0


def auxiliary(session: Session) -> dict[int, int]:
    """The auxiliary vector of the runner: behind its arguments and variables."""
    at, size = session.channel.arguments, 1 << 14
    while True:
        # The stack ends somewhere behind; a child finds out how much of it can be read.
        child = Child(session, _TRIAL_SECONDS)
        try:
            (held,) = child.ask(Operations().peek(at, size))
            break
        except Died:
            size //= 2
            if size < 256:
                return {}
    found = struct.unpack(f"<{size // 8}Q", cast(bytes, held))
    place = 1 + found[0] + 1
    while place < len(found) and found[place]:
        place += 1
    pairs = zip(found[place + 1 :: 2], found[place + 2 :: 2], strict=False)
    vector = dict[int, int]()
    for key, value in pairs:
        if not key:
            break
        vector[key] = value
    return vector
