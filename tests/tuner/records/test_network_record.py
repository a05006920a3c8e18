"""The record of a network's final: stored, exported, checked."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fastrun.tuner.records.network_record import NetworkRecord
from fastrun.tuner.records.record import RecordError
from fastrun.tuner.store.database import Database, DatabaseError

SAMPLES = {
    "heuristic": (2e-3,) * 36,
    "layer times": (1e-3, 1.1e-3, 1e-3, 1.2e-3, 1e-3, 1e-3) * 4 + (1.02e-3,) * 12,
}


def network_record(**fields: Any) -> NetworkRecord:
    """The record of a final that the plan by layer times won; `fields` override."""
    usual: dict[str, Any] = {
        "network": "small",
        "graph": "0123",
        "machine": "machine",
        "threads": 1,
        "limits": "",
        "toolchain": "llvm 1, kernels 1",
        "ir_hash": "code",
        "kept": "layer times",
        "plan": "# a plan\n",
        "samples": SAMPLES,
        "time": "2026-01-01T00:00:00.000000+00:00",
    }
    return NetworkRecord(**(usual | fields))


def test_a_record_knows_what_it_is_worth() -> None:
    r = network_record()
    assert r.seconds("layer times") == pytest.approx(1.02e-3 ** (1 / 3) * 1e-3 ** (2 / 3))
    assert r.seconds("in place") == math.inf
    low, high = r.interval("layer times")
    assert 1.9 < low < 2e-3 / r.seconds("layer times") < high < 2.05
    assert math.isnan(r.interval("in place")[0])
    assert "faster" in r.verdict
    slower = {**SAMPLES, "layer times": tuple(0.99 * x for x in SAMPLES["heuristic"])}
    assert "tie" in network_record(samples=slower).verdict
    assert "own" in network_record(kept="heuristic").verdict
    few = {name: samples[:24] for name, samples in SAMPLES.items()}  # two processes
    assert network_record(samples=few).verdict == "unsure"


def test_records_read_back_in_order_and_travel(tmp_path: Path) -> None:
    later = network_record(time="2026-02-01T00:00:00.000000+00:00", threads=2)
    with Database(tmp_path / "a.db") as a, Database(tmp_path / "b.db") as b:
        a.add_network(later)
        a.add_network(network_record())
        a.add_network(network_record())
        assert a.networks() == [network_record(), later]
        assert a.networks(threads=2, machine="machine") == [later]
        assert a.networks(graph="another") == []
        for _ in range(2):
            b.merge(a)
        assert b.networks() == a.networks()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threads", 0),
        ("plan", 1),
        ("kept", "in place"),
        ("samples", {"layer times": (math.nan,)}),
        ("samples", {"layer times": ("1",)}),
    ],
)
def test_nonsense_is_no_record(field: str, value: object) -> None:
    with pytest.raises(RecordError, match=field):
        network_record(**{field: value})


@pytest.mark.parametrize("samples", ["[]", "{", "7", '{"layer times": 3}', '{"layer times": "x"}'])
def test_a_stranger_is_checked(samples: str, tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    with Database(path) as database:
        database.add_network(network_record())
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE networks SET samples = ?", [samples])
    with Database(path) as database, pytest.raises(DatabaseError, match="invalid record"):
        database.networks()
