"""How many threads a process can keep busy."""

from __future__ import annotations

import pytest

from fastrun.options import thread_counts, threads
from fastrun.tuner.records import affinity


@pytest.mark.parametrize(
    ("cores", "limit", "expected"),
    [(8, None, 8), (8, 3.0, 3), (8, 2.5, 2), (8, 0.5, 1), (2, 16.0, 2), (1, None, 1)],
)
def test_auto_counts_cores_and_cpu_time(
    cores: int, limit: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affinity, "usable_cores", lambda: list(range(cores)))
    monkeypatch.setattr(affinity, "cpu_limit", lambda: limit)
    assert affinity.thread_number("auto") == expected
    assert affinity.thread_number(7) == 7
    assert threads("auto") == expected
    assert thread_counts("1,auto") == tuple(dict.fromkeys((1, expected)))
