"""T4, the results format of the autotuning community, version 1.0.0: written and read.

The schema is https://github.com/odgaard/TuningSchema, branch T4. Times are in milliseconds. The
schema allows further members; they hold the fields of a record that it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import Outcome, Record, RecordError

VERSION = "1.0.0"

_OURS = (
    *("problem", "schedule", "machine", "threads", "regime", "toolchain", "ir_hash"),
    *("reason", "stage", "baseline", "heuristic", "run"),
)
_OURS_LATER = ("processes", "rounds", "protocol", "clocks", "temperatures")
"""Further members of a result, with names and meanings of `Record`."""

_COSTS = {
    "compilation": "compile",
    "validation": "verify",
    "benchmark": "measure",
    "search_algorithm": "search",
    "framework": "framework",
}
"""The names of T4 for the parts of a trial's cost, and the names of records."""


def write_t4(
    records: Iterable[Record],
    environments: Sequence[Environment],
    runs: Sequence[Run] = (),
    about: Mapping[str, object] | None = None,
) -> str:
    """The text of a T4 file, with the schema's metadata, the spaces' parameters and the runs.

    `about` is added to the metadata.
    """
    records = list(records)
    machines = {environment.machine: environment for environment in environments}
    manifests = [environment.to_dict() for environment in machines.values()]
    requirements = {
        f"{package}=={release}"
        for environment in machines.values()
        for package, release in environment.versions.items()
        if release
    }
    metadata = {
        "timeunit": "milliseconds",
        "hardware": {
            "hardware_description": manifests,
            "operating_system": ", ".join(sorted({m["system"] for m in manifests})),
        },
        "environment": {"device_query": {}, "requirements": sorted(requirements)},
        "spaces": _spaces(records),
        "runs": [run.to_dict() for run in runs],
        **(about or {}),
    }
    document = {
        "schema_version": VERSION,
        "metadata": metadata,
        "results": [_result(record) for record in records],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read_t4(text: str | bytes) -> tuple[list[Record], list[Run]]:
    """The records and runs of a file of `write_t4`. The compile time includes the build time.

    Raises:
        RecordError: it is not T4, of another version, or of a tool that leaves out what a record
            needs; the message has the number of the result.
    """
    try:
        document = json.loads(text)
        version, results = document["schema_version"], document["results"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise RecordError(f"not a T4 file: {error}") from error
    if version != VERSION or not isinstance(results, list):
        raise RecordError(f"T4 of version {version!r:.20}: {VERSION} is what can be read")
    records = []
    for number, result in enumerate(results, start=1):
        try:
            records.append(_record(result))
        except KeyError as error:
            raise RecordError(f"result {number}: {error} is missing") from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RecordError(f"result {number}: {error}") from error
    try:
        return records, [Run.from_dict(run) for run in document.get("metadata", {}).get("runs", ())]
    except (TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"runs: {error}") from error


def _spaces(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The searched spaces: for each problem and algorithm the values of every parameter."""
    spaces: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in records:
        where = {
            "problem": record.problem,
            "algorithm": record.algorithm,
            "machine": record.machine,
            "threads": record.threads,
            "regime": record.regime,
            "toolchain": record.toolchain,
        }
        start = where | {"from": record.time, "to": record.time, "results": 0, "parameters": {}}
        space = spaces.setdefault(tuple(map(str, where.values())), start)
        space["from"], space["to"] = min(space["from"], record.time), max(space["to"], record.time)
        space["results"] += 1
        for name, value in record.parameters.items():
            values = space["parameters"].setdefault(name, [])
            if value not in values:
                values.append(value)
    for space in spaces.values():
        for values in space["parameters"].values():
            if not any(isinstance(value, str) for value in values):
                values.sort()
    return list(spaces.values())


def _result(record: Record) -> dict[str, Any]:
    cost = {name: _ms(seconds) for name, seconds in record.seconds.items()}
    compilation = cost.get("build", 0.0) + cost.get("compile", 0.0)
    times = {theirs: cost.get(ours, 0.0) for theirs, ours in _COSTS.items()}
    data = record.to_dict()
    return {
        "timestamp": record.time,
        "configuration": {"algorithm": record.algorithm, **record.parameters},
        "objectives": ["time"],
        "times": {
            **times,
            # The schema has compilation_time, the tools that read such files use compilation.
            "compilation": compilation,
            "compilation_time": compilation,
            "runtimes": [_ms(sample) for sample in record.samples],
        },
        "invalidity": str(record.outcome),
        "correctness": 1.0 if record.outcome == Outcome.CORRECT else 0.0,
        "measurements": list(_measurements(record)),
        **{name: data[name] for name in _OURS},
        **{name: data[name] for name in _OURS_LATER if name in data},
    }


def _measurements(record: Record) -> Iterator[dict[str, Any]]:
    if record.samples:
        yield {"name": "time", "value": _ms(record.seconds_per_call), "unit": "milliseconds"}
    if record.noise is not None:
        yield {"name": "noise", "value": record.noise, "unit": "share"}
    if record.outcome == Outcome.CORRECT:
        yield {"name": "workspace", "value": record.workspace, "unit": "bytes"}
    if record.errors:
        for name, value in record.errors.to_dict().items():
            number = "infinite" if value is None else value
            yield {"name": f"error_{name}", "value": number, "unit": "output rms"}


def _record(result: Mapping[str, Any]) -> Record:
    """The record of a result, checked."""
    measured = {m["name"]: m["value"] for m in result["measurements"]}
    errors = {
        name.removeprefix("error_"): None if value == "infinite" else value
        for name, value in measured.items()
        if name.startswith("error_")
    }
    times = result["times"]
    costs = {ours: times.get(theirs, 0.0) / 1e3 for theirs, ours in _COSTS.items()}
    noise = {"noise": measured["noise"]} if "noise" in measured else {}
    return Record.from_dict(
        {
            **{name: result[name] for name in _OURS},
            **{name: result[name] for name in _OURS_LATER if name in result},
            "time": result["timestamp"],
            "outcome": result["invalidity"],
            "samples": [sample / 1e3 for sample in times["runtimes"]],
            "errors": errors or None,
            "workspace": measured.get("workspace", 0),
            "seconds": {name: seconds for name, seconds in costs.items() if seconds},
            **noise,
        }
    )


def _ms(seconds: float) -> float:
    """Milliseconds with seven digits, which is finer than the clock."""
    return float(f"{1e3 * seconds:.7g}")
