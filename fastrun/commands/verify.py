"""Race the stored winners against the heuristic again.

The stored winner of every convolution of a target races in fresh processes, and the results are
stored. The exit code is 1 if a winner failed, or is slower with 95 % confidence.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastrun.options import conditions, shapes, shapes_of
from fastrun.tuner.networks.targets import read_target
from fastrun.tuner.records.units import UNKNOWN, finite, interval, ms, plural, ratio

if TYPE_CHECKING:
    from fastrun.tuner.search.verify_winners import Verification

LOST = 1


def options(parser: ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("--json", action="store_true", help="print JSON")
    shapes(parser)
    conditions(parser, limited=False)


def run(arguments: Namespace) -> int:
    """Race the stored winners; 1 if one failed or is slower than the heuristic, else 0."""
    from fastrun.tuner.search.verify_winners import verify
    from fastrun.tuner.store.database import Database

    target = read_target(arguments.target, shapes_of(arguments))
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
    from fastrun.choices import not_measured
    from fastrun.tuner.terminal.display import grid, screen

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
        print(not_measured(missing, arguments))


def _drift(r: Verification) -> str:
    return f"{100 * r.drift:+.1f} %" if r.drift == r.drift else UNKNOWN


def _document(
    name: str, found: Sequence[Verification], missing: int, arguments: Namespace
) -> dict[str, Any]:
    """The JSON form; times in seconds, null where nothing is known."""
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
