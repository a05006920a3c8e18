"""Records as files: T4 results, CSV, JSON lines. T4 and JSON lines can be read again."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fastrun.kernels.core.whole_file import write_whole
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import LATER, Record, RecordError
from fastrun.tuner.store.t4 import read_t4, write_t4

# The largest sizes of a line and of a T4 file in bytes. A few hundred bytes of gzip can unpack to
# more than memory holds.
_LONGEST, _LARGEST = 1 << 24, 1 << 30

Writer = Callable[[Sequence[Record], Sequence[Environment], Sequence[Run]], str]


def write(
    path: Path,
    form: str,
    records: Sequence[Record],
    environments: Sequence[Environment],
    runs: Sequence[Run] = (),
) -> None:
    """Write `records` in a format of `FORMATS`; a file whose name ends in `.gz` is compressed.

    `environments` and `runs` are those of the records. The file appears complete or not at all.
    Equal records give equal bytes.

    Raises:
        ValueError: the format is unknown.
        OSError: the file cannot be written.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}: use one of {', '.join(FORMATS)}")
    write_text(path, FORMATS[form](records, environments, runs))


def write_text(path: Path, text: str) -> None:
    """Write a file that appears complete or not at all, compressed if its name ends in `.gz`.

    Raises:
        OSError: the file cannot be written.
    """
    payload = text.encode()
    if path.suffix == ".gz":
        payload = gzip.compress(payload, mtime=0)
    write_whole(path, payload)


def read(path: Path) -> tuple[list[Record], list[Run]]:
    """The records and runs of a JSON lines or T4 file.

    The name tells the format: T4 ends in `.json`, and `.gz` means compressed.

    Raises:
        RecordError: a line or result is no record; the message has its number.
        OSError: the file cannot be read.
    """
    if path.name.removesuffix(".gz").endswith(".csv"):
        raise RecordError(f"{path}: records are not read from CSV: export them as .jsonl or .json")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        if path.name.removesuffix(".gz").endswith(".json"):
            try:
                text = file.read(_LARGEST + 1)
                if len(text) > _LARGEST:
                    raise RecordError(f"more than {_LARGEST >> 20} MB: split it")
                return read_t4(text)
            except RecordError as error:
                raise RecordError(f"{path}: {error}") from error
        records, runs = [], dict[Run, None]()
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST + 1), b""), start=1):
            try:
                if len(line) > _LONGEST:
                    raise RecordError(f"a line of more than {_LONGEST >> 20} MB is too long")
                data = json.loads(line)
                if not isinstance(data, dict):
                    raise RecordError("not a JSON object")
                if (made := data.pop("provenance", None)) is not None:
                    runs[Run.from_dict(made)] = None
                records.append(Record.from_dict(data))
            except (ValueError, RecursionError) as error:
                raise RecordError(f"{path}, line {number}: {error}") from error
        return records, list(runs)


def _jsonl(
    records: Iterable[Record], environments: Sequence[Environment], runs: Sequence[Run]
) -> str:
    made = {run.name: {"provenance": run.to_dict()} for run in runs}
    lines = (record.to_dict() | made.get(record.run, {}) for record in records)
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def _csv(
    records: Sequence[Record], environments: Sequence[Environment], runs: Sequence[Run]
) -> str:
    made = {run.name: _flat_run(run) for run in runs}
    rows = [_flat(record) | made.get(record.run, {}) for record in records]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(record: Record) -> dict[str, object]:
    """One level of names: `errors.max`, `seconds.compile`; the samples as a JSON list."""
    data = LATER | record.to_dict()
    errors, seconds = data.pop("errors") or {}, data.pop("seconds")
    timed = {"seconds_per_call": record.seconds_per_call} if record.samples else {}
    return (
        data
        | {"algorithm": record.algorithm}
        | {name: json.dumps(value) for name, value in data.items() if isinstance(value, list)}
        | timed
        | {f"errors.{name}": value for name, value in errors.items()}
        | {f"seconds.{name}": value for name, value in seconds.items()}
    )


def _flat_run(run: Run) -> dict[str, object]:
    return {f"run.{name}": value for name, value in run.to_dict().items() if name != "name"}


FORMATS: dict[str, Writer] = {"t4": write_t4, "csv": _csv, "jsonl": _jsonl}
