"""Writes the results in README from the files in `results/`.

    python -m fastrun.benchmarks.readme results/MACHINE [--write README.md]

Prints the section; `--write` also puts it between the markers `<!-- results` and
`<!-- results end -->` of a page. Every number comes from `layers.json` and `networks.json`.
"""

from __future__ import annotations

import json
import re
import statistics
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrun.benchmarks import layers, ours, peers
from fastrun.benchmarks.peers import low
from fastrun.benchmarks.precision_table import read_json, summary
from fastrun.benchmarks.report import EngineRace, geometric_mean, read_races
from fastrun.tuner.records.units import UNKNOWN, ms, percent, plural, ratio
from fastrun.tuner.terminal.exits import ended, leave

BEGIN = "<!-- results: written by `make results` from the files in results/ -->"
END = "<!-- results end -->"


@dataclass(frozen=True)
class Bench:
    """The contents of a file of `fastrun bench --json`."""

    data: dict[str, Any]
    races: Sequence[EngineRace]

    @classmethod
    def read(cls, path: Path) -> Bench:
        """Read the file.

        Raises:
            OSError: it cannot be read.
            KeyError, ValueError: it is no such file.
        """
        data = json.loads(path.read_text())
        return cls(data, read_races(data))

    @property
    def threads(self) -> list[int]:
        """The measured numbers of threads."""
        return sorted({h.threads for h in self.races})

    @property
    def engines(self) -> list[str]:
        """The peers of the races."""
        return list(self.data["engines"])

    def of(self, threads: int) -> list[EngineRace]:
        """The races with `threads` threads, in order."""
        return [h for h in self.races if h.threads == threads]


def section(folder: Path) -> str:
    """The section of the machine whose results are in a folder, with the markers."""
    single, whole = Bench.read(folder / "layers.json"), Bench.read(folder / "networks.json")
    parts = [
        BEGIN,
        _conditions(single),
        f"Whole networks, batch 1, 224x224, milliseconds; {_plans(whole)}:",
        _table(_network_rows(whole)),
        *_engine_part(single, whole),
        *_folded("Single layers, by kind", _table(_layer_rows(single)), "\n".join(_losses(single))),
        *_folded("In low precision, beside accuracy", *_precision_part(folder / "precision.json")),
        f"All of it, with versions and samples: `{_shown(folder)}`.",
        END,
    ]
    return "\n\n".join(filter(None, parts))


def replaced(page: str, section: str) -> str:
    """The page with this section between its markers.

    Raises:
        ValueError: the page has no pair of markers, or several pairs.
    """
    pattern = re.compile(r"<!-- results:.*?<!-- results end -->", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError("the page has no `<!-- results: ... -->` and `<!-- results end -->`")
    return pattern.sub(lambda _: section, page)


def _folded(title: str, *parts: str) -> list[str]:
    """Parts that a reader of the page unfolds; nothing if there are none."""
    begin = f"<details>\n<summary>{title}</summary>"
    return [begin, *parts, "</details>"] if parts else []


def _vectors(features: str) -> str:
    """The widest vectors of a processor with these features, as a word in brackets."""
    known = {"avx512f": "AVX-512", "avx2": "AVX2", "neon": "NEON"}
    return next((f" ({known[x]})" for x in known if f"+{x}" in features.split(",")), "")


def _conditions(single: Bench) -> str:
    here, machine = single.data["environment"], single.data["machine"]
    lines = [
        f"{here['model']}{_vectors(here.get('features', ''))}, {plural(here['cores'], 'core')} "
        f"([which](docs/performance.md#the-machines)), float32, {here['time'][:10]}. Measured peak "
        f"{machine['peak'] / 1e9:.0f} GFLOP/s on one core, noise {percent(machine['noise'])}."
    ]
    if single.engines:
        versions = single.data["engines"].items()
        listed = ", ".join(f"{peers.engine(e).title} {v}" for e, v in versions)
        lines.append(
            f'"Best peer" is, row by row, the fastest of {listed}, timed in turns with ours in '
            "one process ([how](docs/benchmarks.md))."
        )
    return "\n".join(lines)


def _layer_rows(single: Bench) -> list[list[str]]:
    flops = {layer.name: layer.problem.flops for layer in layers.published()}
    peak = single.data["machine"]["peak"]
    heads = [f"faster than the best peer, {plural(n, 'thread')}" for n in single.threads]
    rows = [["layers", "number", "of peak, 1 thread", *heads]]
    for group in [*dict.fromkeys(h.group for h in single.races), "all"]:
        members = [h for h in single.races if group in (h.group, "all")]
        alone = [h for h in members if h.threads == 1]
        shares = [flops[h.subject] / h.seconds(ours.NAME) / peak for h in alone]
        means = [
            ratio(geometric_mean(h.over_best for h in members if h.threads == n))
            for n in single.threads
        ]
        rows.append([group, str(len(alone)), percent(statistics.median(shares)), *means])
    return rows


def _losses(single: Bench) -> list[str]:
    """The layers on which the best peer is faster."""
    said = []
    for n in single.threads if single.engines else ():
        lost = sorted((h for h in single.of(n) if h.over_best < 1), key=lambda h: h.over_best)
        words = ", ".join(f"{h.subject} {ratio(h.over_best)} ({h.best_peer})" for h in lost)
        where = f"On {plural(n, 'thread')} the best peer is faster on"
        said.append(f"{where} {len(lost)} of {len(single.of(n))}{': ' if lost else ''}{words}.")
    said.append(
        "Above 100 % of peak means Winograd, or tile registers (AMX): the direct method's "
        "operations are counted, and the peak is that of float32 vectors."
    )
    return said


# What `fastrun.load` says of a network of which no layer has a current measurement.
_UNTUNED = re.compile(r"running by heuristics|no current measurement of (\d+) of \1 ")


def _plans(whole: Bench) -> str:
    notes = {entry.note for h in whole.races for entry in h.entries if entry.engine == ours.NAME}
    if all(_UNTUNED.search(note) for note in notes):
        return "ours by heuristics alone, nothing tuned"
    if any("heuristic" in note for note in notes):
        return "ours as far as `fastrun tune` has measured it, else by heuristics"
    return "ours as `fastrun tune` has left it"


def _network_rows(whole: Bench) -> list[list[str]]:
    heads = ["network"]
    for n in whole.threads:
        heads += [f"ours, {plural(n, 'thread')}", "best peer", "faster"]
    rows = [heads]
    for first in whole.of(whole.threads[0]):
        row = [first.subject]
        for h in (h for h in whole.races if h.subject == first.subject):
            peer = f"{ms(h.seconds(h.best_peer))} {h.best_peer}" if h.best_peer else UNKNOWN
            row += [ms(h.seconds(ours.NAME)), peer, ratio(h.over_best)]
        rows.append(row)
    means = ["geometric mean"]
    for n in whole.threads:
        means += ["", "", ratio(geometric_mean(h.over_best for h in whole.of(n)))]
    return [*rows, means]


def _engine_part(*benches: Bench) -> list[str]:
    engines = list(dict.fromkeys(e for bench in benches for e in bench.engines))
    if not engines:
        return []
    rows = [["", *engines]]
    for name, bench in zip(("layers", "networks"), benches, strict=True):
        for n in bench.threads:
            means = [ratio(geometric_mean(h.over(e) for h in bench.of(n))) for e in engines]
            rows.append([f"{name}, {plural(n, 'thread')}", *means])
    said = "Against each engine alone, geometric means of how many times faster ours is:"
    return [said, _table(rows)]


def _precision_part(path: Path) -> list[str]:
    if not path.exists():
        return []
    said = (
        f"In low precision accuracy counts as much as time. The fastest of {_listed()}, beside "
        "ours. Shares are right answers on tasks with known ones (97 % of 1000: 96 to 98 %, with "
        "95 % confidence); decibels are signal over error, for networks of random weights. "
        "[How](docs/benchmarks.md#in-low-precision)."
    )
    return [said, _table(summary(read_json(path)))]


def _listed() -> str:
    return ", ".join(f"`{name}`" for name in low.VARIANTS)


def _table(rows: Sequence[Sequence[str]]) -> str:
    first, *others = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([first, "|---" * len(rows[0]) + "|", *others])


def _shown(folder: Path) -> str:
    return "/".join(folder.parts[-2:])


def main(words: Sequence[str] | None = None) -> int:
    """Print the section, and write it into a page if the options name one."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.readme", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="the folder of the machine in results/")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="replace the section in this page"
    )
    arguments = parser.parse_args(words)
    try:
        text = section(arguments.folder)
        if arguments.write:
            page = replaced(arguments.write.read_text(), text)
            arguments.write.write_text(page)
    except FileNotFoundError as error:
        parser.error(
            f"{error.filename} is missing: `python -m fastrun.benchmarks.results` measures"
        )
    except ValueError as error:
        parser.error(str(error))
    print(text)
    return 0


if __name__ == "__main__":
    leave(ended("readme", main))
