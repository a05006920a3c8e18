"""T4 files against the published schema, and the open data against its own metadata."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from fastrun.benchmarks.experiments import spaces
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.record import Errors, Outcome
from fastrun.tuner.search.replay import recorded_spaces
from fastrun.tuner.store.t4 import read_t4, write_t4
from tests.support.records import record

OPEN_DATA = sorted((Path(__file__).parents[3] / "results" / "open-data").glob("*.json.gz"))

NUMBER, TEXT, OBJECT, LIST = (int, float), str, dict, list
RESULT: dict[str, Any] = {
    "timestamp": TEXT,
    "configuration": OBJECT,
    "objectives": LIST,
    "times": OBJECT,
    "invalidity": TEXT,
    "correctness": NUMBER,
    "measurements": LIST,
}
TIMES = {
    "compilation_time": NUMBER,
    "runtimes": LIST,
    "framework": NUMBER,
    "search_algorithm": NUMBER,
    "validation": NUMBER,
}
MEASUREMENT = {"name": TEXT, "value": (int, float, str, list), "unit": TEXT}
METADATA = {"hardware": OBJECT, "environment": OBJECT}
"""Members of version 1.0.0 of the schema's two parts, results and metadata, and their types."""


def check_types(value: dict[str, Any], members: dict[str, Any]) -> None:
    for name, kind in members.items():
        assert isinstance(value[name], kind), (name, value[name])
        assert not isinstance(value[name], bool), name


def check(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", document["schema_version"])
    metadata = document["metadata"]
    check_types(metadata, METADATA)
    check_types(
        metadata["hardware"] | metadata["environment"],
        {
            "hardware_description": LIST,
            "operating_system": TEXT,
            "device_query": OBJECT,
            "requirements": LIST,
        },
    )
    for result in document["results"]:
        check_types(result, RESULT)
        check_types(result["times"], TIMES)
        assert result["invalidity"] in set(Outcome)
        for measurement in result["measurements"]:
            check_types(measurement, MEASUREMENT)


def test_what_is_written_is_of_the_schema() -> None:
    worst = Errors(math.inf, 1.0, 0.0)
    records = [
        record(noise=0.1),
        *(record(7, (), outcome=o, errors=None, reason="so") for o in set(Outcome) - {"correct"}),
        record(8, (), outcome=Outcome.CORRECTNESS, errors=worst, reason="wrong"),
    ]
    document = json.loads(write_t4(records, [Environment.host()]))
    check(document)
    (space,) = document["metadata"]["spaces"]
    assert space["parameters"] == {"layout": ["NHWC"], "mr": [6, 7, 8]}
    assert space["results"] == len(records)
    assert (space["problem"], space["algorithm"]) == (records[0].problem, "direct")


@pytest.mark.slow
@pytest.mark.parametrize("name", spaces.GROUNDS)
def test_open_spaces_are_of_a_size_to_measure(name: str) -> None:
    """On any machine: the pinned values must exist in its space."""
    extent = spaces.GROUNDS[name].extent()["extent"]
    assert isinstance(extent, dict)
    assert 100 <= extent["schedules"] <= 4000
    assert extent["schedules"] <= extent["of"]


@pytest.mark.parametrize("path", OPEN_DATA, ids=lambda path: path.name)
def test_open_data_is_whole(path: Path) -> None:
    text = gzip.decompress(path.read_bytes())
    document = json.loads(text)
    check(document)
    assert path.stat().st_size < 1 << 20
    records, _ = read_t4(text)
    assert len({r.schedule for r in records}) == len(records)
    (recorded,) = recorded_spaces(records)
    (about,) = document["metadata"]["spaces"]
    assert len(recorded.values) == about["results"] == len(records)
    assert {name: list(values) for name, values in recorded.space.domains.items()} == about[
        "parameters"
    ]
    assert recorded.optimum < recorded.slowest
    extent = document["metadata"]["extent"]
    assert extent["pins"] == spaces.GROUNDS[path.name.removesuffix(".json.gz")].pins
    assert len(records) == extent["schedules"] <= extent["of"]
