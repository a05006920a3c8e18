"""Limits of control groups, in made-up systems of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrun.kernels.core import cgroup
from fastrun.kernels.core.cgroup import cpu_limit, memory_limit, physical_memory, usable_memory

V1_CPU = "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V1_NAMED = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd"
V2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw"
HYBRID = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
HALF, TWO = "50000 100000", "200000 100000"


def v1(quota: int, period: int = 100_000) -> dict[str, str]:
    return {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": f"{period}\n"}


def system(root: Path, own: str, mounts: list[str], groups: dict[str, dict[str, str]]) -> Path:
    """A system with these files of /proc/self and these folders of groups."""
    files = {"proc/self/cgroup": own, "proc/self/mountinfo": "\n".join(mounts)}
    for group, contents in groups.items():
        files |= {f"sys/fs/cgroup/{group}/{name}": text for name, text in contents.items()}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CPU = {
    "version 2": ("0::/user/job", [V2], {"user/job": {"cpu.max": HALF}}, 0.5),
    "version 2, no limit": ("0::/job", [V2], {"job": {"cpu.max": "max 100000"}}, None),
    "version 2, set further out": (
        "0::/a/b/c",
        [V2],
        {"a": {"cpu.max": HALF}, "a/b": {"cpu.max": "max 100000"}, "a/b/c": {"cpu.max": TWO}},
        0.5,
    ),
    "version 2, in a namespace": ("0::/", [V2], {"": {"cpu.max": "150000 100000"}}, 1.5),
    "version 2, above the namespace": ("0::/../other", [V2], {"": {"cpu.max": HALF}}, 0.5),
    "version 2, a sibling's": (
        "0::/mine", [V2], {"mine": {"cpu.max": TWO}, "other": {"cpu.max": HALF}}, 2.0,
    ),
    "version 1": (
        "4:cpu,cpuacct:/job\n1:name=systemd:/x", [V1_CPU, V1_NAMED], {"cpu/job": v1(50_000)}, 0.5,
    ),
    "version 1, no limit": (
        "4:cpu,cpuacct:/job", [V1_CPU], {"cpu/job": v1(-1), "cpu": v1(-1)}, None,
    ),
    "version 1, nested": (
        "4:cpu:/a/b", [V1_CPU], {"cpu/a": v1(25_000), "cpu/a/b": v1(300_000)}, 0.25,
    ),
    "version 1, Docker's mount": (
        "4:cpu,cpuacct:/docker/1f",
        [V1_CPU.replace(" / /sys", " /docker/1f /sys")],
        {"cpu": v1(30_000)},
        0.3,
    ),
    "version 1, a mount of a group further in": (
        "4:cpu:/docker/1f/in",
        [V1_CPU.replace(" / /sys", " /docker/1f /sys")],
        {"cpu/in": v1(70_000), "cpu": v1(-1)},
        0.7,
    ),
    "both, the controller in version 1": (
        "4:cpu:/job\n0::/job", [V1_CPU, HYBRID], {"cpu/job": v1(50_000), "unified/job": {}}, 0.5,
    ),
    "both, the controller in version 2": (
        "4:memory:/job\n0::/job", [V1_MEMORY, HYBRID], {"unified/job": {"cpu.max": HALF}}, 0.5,
    ),
    "a folder with a space": ("0::/my job", [V2], {"my job": {"cpu.max": HALF}}, 0.5),
    "a mount with a space": (
        "0::/job", [V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/my\040groups")],
        {"my groups/job": {"cpu.max": HALF}}, 0.5,
    ),
    "a group that is gone": ("0::/gone", [V2], {}, None),
    "no groups at all": ("", [], {}, None),
    "nonsense": ("0::/job", [V2, "x", ""], {"job": {"cpu.max": "many 0"}}, None),
    "a period of nothing": ("0::/job", [V2], {"job": {"cpu.max": "5 0"}}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CPU)
def test_the_least_limit_of_all_groups_counts(tmp_path: Path, case: str) -> None:
    own, mounts, groups, limit = CPU[case]
    assert cpu_limit(system(tmp_path, own, mounts, groups)) == limit


@pytest.mark.parametrize(
    ("own", "mounts", "groups", "limit"),
    [
        ("0::/a/b", [V2], {"a": {"memory.max": "1000"}, "a/b": {"memory.max": "max"}}, 1000),
        ("0::/a", [V2], {"a": {"memory.max": "max"}}, None),
        ("4:memory:/a", [V1_MEMORY], {"memory/a": {"memory.limit_in_bytes": "2048"}}, 2048),
        ("4:memory:/a", [V1_MEMORY], {"memory/a": {"memory.limit_in_bytes": str(2**63 - 1)}}, None),
    ],
)
def test_memory_goes_the_same_way(
    tmp_path: Path, own: str, mounts: list[str], groups: dict[str, dict[str, str]], limit: int
) -> None:
    assert memory_limit(system(tmp_path, own, mounts, groups)) == limit


def test_a_system_without_files_has_no_limit(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path) is None
    assert memory_limit(tmp_path) is None


@pytest.mark.parametrize(("limit", "share"), [(None, 1), (0.5, 0.5), (2, 1)])
def test_the_limit_of_a_group_makes_less_memory_usable(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, share: float
) -> None:
    physical = physical_memory()
    found = None if limit is None else int(limit * physical)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: found)
    usable_memory.cache_clear()
    assert usable_memory() == int(share * physical)
    usable_memory.cache_clear()
