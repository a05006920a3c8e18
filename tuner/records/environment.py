"""Where a measurement was taken: the machine, its load, and every version that matters."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType
from typing import Any

from fastrun.kernels.core.cgroup import cpu_limit, memory_limit, physical_memory
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import source_hash
from fastrun.kernels.native.compile import llvm_version
from fastrun.tuner.records.record import RecordError, check_type, now

_PACKAGES = Path(__file__).parents[2]
"""The folder that holds the packages of `fastrun`."""

PACKAGES = ("llvmlite", "numpy", "optuna")
"""Distributions whose version a measurement or a search may depend on."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One machine at one time. Sizes are in bytes; '' or None stands for what cannot be read.

    `machine` is `Cpu.fingerprint`, `features` LLVM's feature string, `cores` the number of cores
    that this process may use. `cpu_limit` (in cores) and `memory_limit` come from the control
    groups of this process. `load` is the load average over 1, 5 and 15 minutes. Nothing here names
    a person, host or folder.
    """

    machine: str
    model: str
    features: str
    l1: int
    l2: int
    l3: int
    cores: int
    memory: int
    system: str
    kernel: str
    governor: str
    turbo: str
    smt: str
    cpu_limit: float | None
    memory_limit: int | None
    load: tuple[float, float, float]
    toolchain: str
    versions: Mapping[str, str] = field(hash=False)
    time: str = field(default_factory=now)

    @classmethod
    def host(cls) -> Environment:
        """This machine, now."""
        cpu = Cpu.host()
        return cls(
            machine=cpu.fingerprint,
            model=cpu.model,
            features=cpu.features,
            l1=cpu.l1,
            l2=cpu.l2,
            l3=cpu.l3,
            cores=cpu.cores,
            memory=physical_memory(),
            system=_system(),
            kernel=f"{platform.system()} {platform.release()}",
            governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            turbo=_turbo(),
            smt={"1": "on", "0": "off"}.get(_read("/sys/devices/system/cpu/smt/active"), ""),
            cpu_limit=cpu_limit(),
            memory_limit=memory_limit(),
            load=os.getloadavg(),
            toolchain=toolchain(),
            versions=_versions(),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `Environment.from_dict` restores it."""
        return asdict(self) | {"load": list(self.load), "versions": dict(self.versions)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Environment:
        """Read what `to_dict` wrote. Every field is checked.

        Raises:
            RecordError: a field is missing, unknown or of the wrong type.
        """
        check_type("environment", data, dict)
        if wrong := data.keys() ^ {f.name for f in fields(cls)}:
            raise RecordError(f"environment field {min(wrong)!r:.60} is missing or unknown")
        for f in fields(cls):
            kinds = _KINDS.get(str(f.type))
            if kinds and type(data[f.name]) not in kinds:
                raise RecordError(f"environment field {f.name!r} is {data[f.name]!r:.60}")
        load, versions = data["load"], data["versions"]
        if not isinstance(load, list) or [type(x) for x in load] != [float] * 3:
            raise RecordError(f"environment field 'load': expected three numbers, got {load!r:.60}")
        if not isinstance(versions, dict) or {type(x) for x in versions.values()} - {str}:
            raise RecordError(f"environment field 'versions': expected texts, got {versions!r:.60}")
        return cls(**{**data, "load": tuple(load)})


_KINDS: dict[str, set[type]] = {
    "str": {str},
    "int": {int},
    "int | None": {int, NoneType},
    "float | None": {int, float, NoneType},
}


@functools.cache
def toolchain() -> str:
    """LLVM's version and the hash of the generator's source: they determine the machine code."""
    return f"llvm {llvm_version()}, kernels {generator_hash()}"


def generator_hash() -> str:
    """Twelve hex digits of a hash of all source files of `kernels`."""
    return source_hash(_PACKAGES / "kernels")[:12]


@functools.cache
def tuner_hash() -> str:
    """Twelve hex digits of a hash of all source files of `tuner`, which search and measure."""
    return source_hash(_PACKAGES / "tuner")[:12]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "llvm": llvm_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found | {"kernels": generator_hash()}


def _read(path: str) -> str:
    """A small file of the operating system, stripped; '' if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return platform.system()


def _turbo() -> str:
    if off := _read("/sys/devices/system/cpu/intel_pstate/no_turbo"):
        return "off" if off == "1" else "on"
    return {"1": "on", "0": "off"}.get(_read("/sys/devices/system/cpu/cpufreq/boost"), "")
