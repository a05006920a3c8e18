"""Merge the databases of several machines, compare them, and report on this one.

    python examples/merge_and_report.py all.db here.db board.db --out report

Merging twice changes nothing: only new records are added. The other databases are only read.
Nothing in them is executed, and a malformed record is refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastrun import Database, DatabaseError
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.report.page import write_report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("merged", help="the database to which records are added")
    parser.add_argument("databases", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="(default: the machine's folder in reports/)")
    options = parser.parse_args()

    with Database(options.merged) as merged:
        for path in options.databases:
            print(f"{path}: {merged.merge(path)} new records")
        models = {e.machine: e.model for e in merged.environments()}
        table = merged.frame(stage="final", outcome="correct", threads=options.threads)
        table = table[(table["regime"] == "hot") & ~table["baseline"]]
        best = table.loc[table.groupby(["problem", "machine"])["seconds_per_call"].idxmin()]
        best = best.assign(ms=1e3 * best["seconds_per_call"])
        print(best.pivot(index="problem", columns="machine", values=["ms", "algorithm"]))
        for machine in sorted(set(best["machine"])):
            print(f"{machine}: {models.get(machine, 'unknown')}")
        try:
            here = probe()
            page = write_report(
                merged, [], options.out, here, threads=options.threads, regime="hot"
            )
            print(f"report: {page}")
        except DatabaseError as error:
            print(f"no report: {error}")


if __name__ == "__main__":
    main()
