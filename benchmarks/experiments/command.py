"""Common parts of the experiments' commands: options, tables, files."""

from __future__ import annotations

import json
import os
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fastrun.benchmarks.experiments.pairs import Findings
from fastrun.benchmarks.report import introduce
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.machine.noise import in_words, noise_of
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.units import interval, ms, percent, ratio, size
from fastrun.tuner.report.frames import rows
from fastrun.tuner.terminal.display import grid, screen

QUICK = os.environ.get("FASTRUN_BUDGET") == "quick"
"""Whether tests run a notebook: a few small layers, few samples."""

Column = Callable[[Any], str]
"""The text of a table's column for a row, whose columns are attributes."""


@dataclass(frozen=True)
class Part:
    """A part of an experiment: the function that measures it, and the one that prints its table."""

    name: str
    measure: Callable[[bool], Findings]
    show: Callable[[pd.DataFrame], None]


def command(name: str, doc: str | None, parts: Sequence[Part]) -> Callable[..., int]:
    """The main function of an experiment, which takes the words of its command line."""

    def main(words: Sequence[str] | None = None) -> int:
        return carry_out(parts, options(name, doc).parse_args(words))

    return main


def options(name: str, doc: str | None) -> ArgumentParser:
    """The options of all experiments."""
    parser = ArgumentParser(
        prog=f"python -m fastrun.benchmarks.experiments.{name}",
        description=(doc or "").split("\n")[0],
    )
    parser.add_argument("--quick", action="store_true", help="a few small layers, few samples")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write the tables to files here")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all samples to this file")
    return parser


def carry_out(parts: Sequence[Part], arguments: Namespace) -> int:
    """Measure and print every part; write tables and samples as the options say."""
    introduce((), {})
    found = {}
    for part in parts:
        found[part.name] = findings = part.measure(arguments.quick)
        print(f"\n{part.name}")
        part.show(findings.table)
        if findings.records:
            noise = noise_of(findings.records)
            print(f"noise {percent(noise)}, {in_words(noise)}")
        write_csv(arguments.csv, part.name, findings.table)
    if arguments.json:
        _write_json(arguments.json, found)
    return 0


def write_csv(folder: Path | None, name: str, table: pd.DataFrame) -> None:
    """Write a table to a file in a folder, if there is one."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.csv"
        table.to_csv(path, index=False, float_format="%.4g", lineterminator="\n")


def show(columns: Mapping[str, Column]) -> Callable[[pd.DataFrame], None]:
    """A function that prints tables with these heads."""

    def print_(table: pd.DataFrame) -> None:
        cells = [[column(row) for column in columns.values()] for row in rows(table)]
        grid(screen(), list(columns), cells)

    return print_


def show_pairs(
    about: Mapping[str, Column], before: str, after: str, by: str, memory: bool = False
) -> Callable[[pd.DataFrame], None]:
    """A function that prints tables of `race_pairs`: columns `about`, both sides, a summary."""
    columns: dict[str, Column] = {
        **about,
        f"{before}\nms>": lambda r: ms(r.before),
        f"{after}\nms>": lambda r: ms(r.after),
        f"{after}\nis faster>": lambda r: ratio(r.speedup),
        "95 %\ninterval>": lambda r: interval(r.low, r.high),
        "verdict": lambda r: r.verdict,
    }
    if memory:
        columns |= {
            f"{before}\nworkspace>": lambda r: size(r.before_bytes),
            f"{after}\nworkspace>": lambda r: size(r.after_bytes),
            "smaller\nby>": lambda r: ratio(r.before_bytes / r.after_bytes),
        }

    def print_(table: pd.DataFrame) -> None:
        show(columns)(table)
        show_summary(table, by)

    return print_


def show_machine() -> Cpu:
    """Print the processor at hand and the sizes of its caches; returns it."""
    cpu = Cpu.host()
    print(f"{cpu.model}, L1 {cpu.l1 >> 10} KiB, L2 {cpu.l2 >> 10} KiB, L3 {cpu.l3 >> 20} MiB")
    return cpu


def show_summary(table: pd.DataFrame, by: str) -> None:
    """Print the summary of a table of pairs."""
    show(_SUMMARY)(summary(table, by))


def summary(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """The results of pairs, for each value of a column and for all of them.

    Columns: `group`, `pairs`, the geometric mean of `speedup` as `mean`, its extremes `least` and
    `most`, and how many are `faster`, `tie`, `slower` and `unsure`.
    """
    groups = [(str(key), members) for key, members in table.groupby(by, sort=False)]
    ended = []
    for key, members in [*groups, ("all", table)] if len(groups) > 1 else [("all", table)]:
        speedups, verdicts = members["speedup"], list(members["verdict"])
        ended.append(
            {
                "group": key,
                "pairs": len(members),
                "mean": statistics.geometric_mean(speedups.dropna()),
                "least": speedups.min(),
                "most": speedups.max(),
                **{word: verdicts.count(word) for word in _VERDICTS},
            }
        )
    return pd.DataFrame(ended)


_SUMMARY: dict[str, Column] = {
    "": lambda r: r.group,
    "n>": lambda r: str(r.pairs),
    "faster by,\ngeom. mean>": lambda r: ratio(r.mean),
    "least>": lambda r: ratio(r.least),
    "most>": lambda r: ratio(r.most),
    "faster>": lambda r: str(r.faster),
    "tie>": lambda r: str(r.tie),
    "slower>": lambda r: str(r.slower),
    "unsure>": lambda r: str(r.unsure),
}
_VERDICTS = ("faster", "tie", "slower", "unsure")


def _write_json(path: Path, found: Mapping[str, Findings]) -> None:
    """Environment, tables and all raw samples, in seconds per call."""
    data = {
        "environment": Environment.host().to_dict(),
        "parts": {
            name: {
                "table": json.loads(findings.table.to_json(orient="records", double_precision=15)),
                "records": [record.to_dict() for record in findings.records],
            }
            for name, findings in found.items()
        },
    }
    path.write_text(json.dumps(data, indent=1) + "\n")
