"""Replay search methods on recorded spaces, without measuring."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastrun.kernels.core.problem import ConvProblem
from fastrun.options import conditions, count, new_folder, samplers
from fastrun.tuner.networks.targets import is_problem
from fastrun.tuner.records.units import UNKNOWN, interval, ms, percent, plural

if TYPE_CHECKING:
    import pandas as pd

    from fastrun.tuner.search.replay import RecordedSpace


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "spaces",
        nargs="+",
        metavar="SPACE",
        help="a .json (T4) or .jsonl file, or the text of a problem in the database",
    )
    parser.add_argument(
        "--samplers",
        type=samplers,
        default=("gp", "tpe", "random", "local"),
        metavar="A,B",
        help="what to compare: names and import paths as in `fastrun tune --sampler` (default "
        "gp,tpe,random,local)",
    )
    parser.add_argument(
        "--repeats",
        type=count,
        default=100,
        metavar="N",
        help="number of walks of each sampler through each space (default 100)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the first walk (default 0)"
    )
    parser.add_argument(
        "--out",
        type=new_folder,
        metavar="DIR",
        help="write the figure and the tables into this folder",
    )
    conditions(parser, limited=False)


def run(arguments: Namespace) -> int:
    """Replay every method on every space, and show what came of it."""
    from fastrun.tuner.report.plots import search_curves
    from fastrun.tuner.report.style import save_png
    from fastrun.tuner.search.replay import compare, curves_frame, overall_frame, scores_frame

    spaces = [space for text in arguments.spaces for space in _spaces(text, arguments)]
    found = []
    for space in spaces:
        print(
            f"{space.name}: {plural(len(space.values), 'schedule')}, {space.near} within 2 % of "
            f"the optimum, {ms(space.optimum)} ms"
        )
        replays = compare(space, arguments.samplers, arguments.repeats, arguments.seed)
        _show(scores_frame(replays), space)
        found += replays
    if len(spaces) > 1:
        print("all spaces")
        _show(overall_frame(found))
    print(
        "score: 0 is calculated random search, 1 the optimum at once; mean of "
        f"{plural(arguments.repeats, 'walk')}. To 2 %: schedules measured, median"
    )
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        curves, scores = curves_frame(found), scores_frame(found)
        save_png(search_curves(curves), arguments.out / "search.png")
        for name, table in (("search", curves), ("scores", scores)):
            path = arguments.out / f"{name}.csv"
            table.to_csv(path, index=False, float_format="%.5g", lineterminator="\n")
        print(f"{arguments.out}: search.png, search.csv, scores.csv")
    return 0


def _spaces(text: str, arguments: Namespace) -> Iterator[RecordedSpace]:
    """What a file or the database holds of spaces, or an error if that is nothing."""
    from fastrun.kernels.core.cpu import Cpu
    from fastrun.tuner.records.record import RecordError
    from fastrun.tuner.search.replay import recorded_spaces
    from fastrun.tuner.search.sampler_choice import SMALL
    from fastrun.tuner.store import exchange
    from fastrun.tuner.store.database import existing

    if is_problem(text):
        with existing(arguments.db) as database:
            records = database.records(
                problem=str(ConvProblem.parse(text)),
                machine=Cpu.host().fingerprint,
                threads=arguments.threads,
                regime=arguments.regime,
            )
    else:
        records, _ = exchange.read(Path(text))
    spaces = recorded_spaces(records)
    if not spaces:
        raise RecordError(
            f"{text}: no algorithm has the {SMALL + 1} measured schedules that a replay needs; run "
            "`fastrun tune --effort exhaustive` first"
        )
    if len(spaces) == 1 and not is_problem(text):
        spaces = [replace(spaces[0], name=Path(text).name.split(".")[0])]
    yield from spaces


def _show(scores: pd.DataFrame, space: RecordedSpace | None = None) -> None:
    """A row for each method; of one space with what random search is calculated to do."""
    from fastrun.tuner.report.frames import rows
    from fastrun.tuner.terminal.display import grid, screen

    cells = [
        (
            *(r.sampler, f"{r.score:.2f}"),
            interval(r.low, r.high),
            *((_count(r.needed),) if space else ()),
            percent(r.share) if r.share < math.inf else "not reached",
        )
        for r in rows(scores)
    ]
    if space:
        share = space.random_needs / len(space.values)
        cells += [("calculated", "0.00", "", str(space.random_needs), percent(share))]
    heads = ["method", "score>", "95 %\ninterval>"]
    heads += ["to 2 %>", "share of\nspace>"] if space else ["largest\nshare>"]
    grid(screen(), heads, cells)


def _count(needed: float) -> str:
    return f"{needed:.0f}" if needed < math.inf else UNKNOWN
