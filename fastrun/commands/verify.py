"""`fastrun verify`: race the stored winners again, and say whether they still win."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from fastrun.tuner.networks.targets import read_target
from fastrun.tuner.records.units import UNKNOWN, finite, interval, ms, plural, ratio
from fastrun.tuner.search.verify_winners import Verification, verify
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.display import grid, screen

LOST = 1


def run(arguments: Namespace) -> int:
    """Race the stored winners; 1 if one failed or surely lost to the heuristic, else 0."""
    target = read_target(arguments.target)
    problems = [p for p, _ in target.problems]
    with Database(arguments.db) as database:
        found = list(verify(database, problems, threads=arguments.threads, regime=arguments.regime))
    missing = len(problems) - len(found)
    if arguments.json:
        print(json.dumps(_document(target.name, found, missing, arguments), indent=1))
    else:
        _show(found, missing, arguments)
    return 0 if all(r.holds for r in found) else LOST


def _show(found: Sequence[Verification], missing: int, arguments: Namespace) -> None:
    heads = (
        *("problem", "winner", "stored\nms>", "now\nms>", "stored\nover heur.>"),
        *("now\nover heur.>", "95 %\ninterval>", "drift>", "verdict"),
    )
    rows = [
        (
            *(str(r.problem), r.stored.algorithm),
            *(ms(r.stored.seconds_per_call), ms(r.winner.seconds_per_call)),
            *(ratio(r.before), ratio(r.now), interval(*r.interval), _drift(r)),
            f"{r.verdict}, stale" if r.stale else r.verdict,
        )
        for r in found
    ]
    grid(screen(), heads, rows)
    for r in found:
        if r.verdict == "failed":
            print(f"{r.problem}: {r.winner.outcome}: {r.winner.reason}: {r.stored.schedule}")
    lost = sum(not r.holds for r in found)
    print(
        f"{plural(len(found), 'winner')} raced the heuristic again, "
        f"{lost or 'none'} {'has' if lost == 1 else 'have'} lost"
    )
    if missing:
        print(
            f"{plural(missing, 'problem')} not measured with "
            f"{plural(arguments.threads, 'thread')}, {arguments.regime}: `fastrun tune` does that"
        )


def _drift(r: Verification) -> str:
    return f"{100 * r.drift:+.1f} %" if r.drift == r.drift else UNKNOWN


def _document(
    name: str, found: Sequence[Verification], missing: int, arguments: Namespace
) -> dict[str, Any]:
    """JSON form; times in seconds, null is what is not known."""
    return {
        "target": name,
        "threads": arguments.threads,
        "regime": arguments.regime,
        "missing": missing,
        "problems": [
            {
                "problem": str(r.problem),
                "schedule": r.stored.schedule,
                "stale": r.stale,
                "verdict": r.verdict,
                "holds": r.holds,
                "reason": r.winner.reason,
                "stored": finite(r.stored.seconds_per_call),
                "now": finite(r.winner.seconds_per_call),
                "heuristic": finite(r.heuristic.seconds_per_call),
                "stored_over_heuristic": finite(r.before),
                "now_over_heuristic": finite(r.now),
                "interval": [finite(x) for x in r.interval],
                "drift": finite(r.drift),
            }
            for r in found
        ],
    }
