"""Records as files that others read: T4 results, CSV, JSON lines (which reads back)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tuner.environment import Environment
from tuner.record import Outcome, Record, RecordError

Writer = Callable[[Sequence[Record], Sequence[Environment]], str]

T4_VERSION = "1.0.0"


def write(
    path: Path, form: str, records: Sequence[Record], environments: Sequence[Environment]
) -> None:
    """Write `records` in a format of `FORMATS`; a name that ends in `.gz` is compressed.

    The file appears whole or not at all, and equal records give equal bytes.

    Raises:
        ValueError: unknown format.
        OSError: the file cannot be written.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}: use one of {', '.join(FORMATS)}")
    payload = FORMATS[form](records, environments).encode()
    if path.suffix == ".gz":
        payload = gzip.compress(payload, mtime=0)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            file.write(payload)
            file.flush()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise


def read_jsonl(path: Path) -> Iterator[Record]:
    """The records of a JSON lines file, compressed if its name ends in `.gz`.

    Raises:
        RecordError: a line is no record; the message names the line.
        OSError: the file cannot be read.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                data = json.loads(line)
                if not isinstance(data, dict):
                    raise RecordError("not a JSON object")
                yield Record.from_dict(data)
            except (ValueError, RecursionError) as error:
                raise RecordError(f"{path}, line {number}: {error}") from error


def _jsonl(records: Iterable[Record], environments: Sequence[Environment]) -> str:
    return "".join(json.dumps(record.to_dict(), allow_nan=False) + "\n" for record in records)


def _csv(records: Sequence[Record], environments: Sequence[Environment]) -> str:
    rows = [_flat(record) for record in records]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(record: Record) -> dict[str, object]:
    """One level of names: `errors.max`, `seconds.compile`; the samples as a JSON list."""
    data = record.to_dict()
    errors, seconds = data.pop("errors") or {}, data.pop("seconds")
    timed = {"seconds_per_call": record.seconds_per_call} if record.samples else {}
    return (
        data
        | {"algorithm": record.algorithm, "samples": json.dumps(data["samples"])}
        | timed
        | {f"errors.{name}": value for name, value in errors.items()}
        | {f"seconds.{name}": value for name, value in seconds.items()}
    )


def _t4(records: Iterable[Record], environments: Sequence[Environment]) -> str:
    """The community's results format; what it has no word for stands beside its own members."""
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
    }
    document = {
        "schema_version": T4_VERSION,
        "metadata": metadata,
        "results": [_t4_result(record) for record in records],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _t4_result(record: Record) -> dict[str, Any]:
    cost = {name: 1e3 * seconds for name, seconds in record.seconds.items()}
    compilation = cost.get("build", 0.0) + cost.get("compile", 0.0)
    correct = record.outcome == Outcome.CORRECT
    data = record.to_dict()
    extra = (
        *("problem", "schedule", "machine", "threads", "regime", "toolchain", "ir_hash"),
        *("reason", "stage", "baseline", "heuristic", "run"),
    )
    return {
        "timestamp": record.time,
        "configuration": {"algorithm": record.algorithm, **record.parameters},
        "objectives": ["time"],
        "times": {
            # The schema says compilation_time, the tools that read the files say compilation.
            "compilation_time": compilation,
            "compilation": compilation,
            "benchmark": cost.get("measure", 0.0),
            "validation": cost.get("verify", 0.0),
            "search_algorithm": cost.get("search", 0.0),
            "framework": cost.get("framework", 0.0),
            "runtimes": [1e3 * sample for sample in record.samples],
        },
        "invalidity": str(record.outcome),
        "correctness": 1.0 if correct else 0.0,
        "measurements": list(_t4_measurements(record)),
        **{name: data[name] for name in extra},
    }


def _t4_measurements(record: Record) -> Iterator[dict[str, Any]]:
    if record.samples:
        yield {"name": "time", "value": 1e3 * record.seconds_per_call, "unit": "milliseconds"}
    if record.noise is not None:
        yield {"name": "noise", "value": record.noise, "unit": "share"}
    if record.outcome == Outcome.CORRECT:
        yield {"name": "workspace", "value": record.workspace, "unit": "bytes"}
    if record.errors:
        for name, value in record.errors.to_dict().items():
            number = "infinite" if value is None else value
            yield {"name": f"error_{name}", "value": number, "unit": "output rms"}


FORMATS: dict[str, Writer] = {"t4": _t4, "csv": _csv, "jsonl": _jsonl}
