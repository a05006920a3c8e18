"""Records as files that others read: T4 results, CSV, JSON lines; the first and last read back."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tuner.environment import Environment
from tuner.record import Record, RecordError
from tuner.t4 import read_t4, write_t4

Writer = Callable[[Sequence[Record], Sequence[Environment]], str]


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
    write_text(path, FORMATS[form](records, environments))


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all, compressed if its name ends in `.gz`.

    Raises:
        OSError: the file cannot be written.
    """
    payload = text.encode()
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


def read(path: Path) -> Iterator[Record]:
    """The records of a JSON lines or T4 file, by its name, compressed if that ends in `.gz`.

    Raises:
        RecordError: a line or result is no record; the message names it.
        OSError: the file cannot be read.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        if path.name.removesuffix(".gz").endswith(".json"):
            try:
                yield from read_t4(file.read())
            except RecordError as error:
                raise RecordError(f"{path}: {error}") from error
            return
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


FORMATS: dict[str, Writer] = {"t4": write_t4, "csv": _csv, "jsonl": _jsonl}
