"""How much CPU time and memory this process may use: the limits of all its control groups.

A process sees the hierarchies of groups as they are mounted: the unified one of version 2, one for
each controller of version 1, or both. A mount may show only a part of a hierarchy, and a namespace
of control groups renames the root. Limits set above that part cannot be seen from inside.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

# Version 1 writes "no limit" of memory as a number near 2**63.
_ENDLESS = 1 << 60


def cpu_limit(root: Path = Path("/")) -> float | None:
    """CPU time per second of wall time, in cores; None is no limit.

    `root` is the folder that holds `proc` and `sys`.
    """
    return _least(root, "cpu", _cpu_of)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes; None is no limit."""
    found = _least(root, "memory", _memory_of)
    return None if found is None else int(found)


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def usable_memory() -> int:
    """Bytes that this process may use: the machine's memory, or the limit of a group if less."""
    return min(physical_memory(), memory_limit() or physical_memory())


def _least(root: Path, controller: str, read: Callable[[Path], float | None]) -> float | None:
    limits = [read(group) for group in _groups(root, controller)]
    return min((limit for limit in limits if limit is not None), default=None)


def _cpu_of(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    if quota.isdecimal() and period.isdecimal() and int(period):
        return int(quota) / int(period)
    return None


def _memory_of(group: Path) -> float | None:
    text = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
    return int(text) if text.isdecimal() and int(text) < _ENDLESS else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in, from the innermost to the outermost seen."""
    own = _own_groups(root, controller)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        mount, system = before.split(), after.split()
        if len(mount) < 5 or len(system) < 3 or system[0] not in own:
            continue
        if system[0] == "cgroup" and controller not in system[2].split(","):
            continue
        top = root / _unescaped(mount[4]).lstrip("/")
        inside = _inside(PurePosixPath(own[system[0]]), PurePosixPath(_unescaped(mount[3])))
        for folder in (inside, *inside.parents):
            yield top / folder


def _own_groups(root: Path, controller: str) -> dict[str, str]:
    """The path of this process's group in its hierarchy, by kind of file system."""
    own = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            own["cgroup2"] = path
        elif controller in controllers.split(","):
            own["cgroup"] = path
    return own


def _inside(path: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath:
    """The path of a group below the mount; `.` where the mount shows no more than the group."""
    if path.is_relative_to(mounted) and ".." not in path.parts:
        return path.relative_to(mounted)
    # In a container the mount may begin at the group while the path begins at the host's root, or
    # the other way round.
    return PurePosixPath() if ".." in path.parts else path.relative_to("/")


def _unescaped(text: str) -> str:
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        text = text.replace(f"\\{code}", character)
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
