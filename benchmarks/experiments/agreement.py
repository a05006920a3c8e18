"""Whether tunings agree with each other, and with a measurement a minute later.

    python -m fastrun.benchmarks.experiments.agreement [--minutes M] [--seconds S] [--csv FOLDER]

First, five tunings of the same layers, each with its own database and seed, choose a schedule each.
The five schedules race each other, so that their times can be compared. Second, many layers are
tuned, and the winner of each races the heuristic again at once: how far is the second speed-up
from the first? Measurements are kept (`--work`), so that the same command continues a stopped run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from fastrun.benchmarks import report
from fastrun.benchmarks.experiments.command import show, write_csv
from fastrun.benchmarks.experiments.steps import Step, carry_on, step_options
from fastrun.kernels.core.attention import parse_problem
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.measure.races import FINAL, race
from fastrun.tuner.records.record import Conditions, Stage
from fastrun.tuner.records.units import interval, ms, ratio
from fastrun.tuner.report.frames import layer_labels
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.options import SearchOptions
from fastrun.tuner.search.verify_winners import verify
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.standing import standings
from fastrun.tuner.terminal.exits import ended, leave

TUNINGS = 5

REPEATED = (
    "conv 1x64x56x56 64x3x3 s1 p1 bias relu",
    "conv 1x256x14x14 256x3x3 s1 p1 bias relu",
    "conv 1x64x56x56 128x3x3 s2 p1 bias relu",
    "conv 1x512x28x28 128x1x1 s1 p0 bias relu",
    "conv 1x144x56x56 144x3x3 s1 p1 g144 bias relu6",
)

LATER = (
    # ResNet-18 and 50
    "conv 1x3x224x224 64x7x7 s2 p3 bias relu",
    "conv 1x64x56x56 64x3x3 s1 p1 bias add relu",
    "conv 1x128x28x28 128x3x3 s1 p1 bias relu",
    "conv 1x128x28x28 256x3x3 s2 p1 bias relu",
    "conv 1x256x14x14 256x3x3 s1 p1 bias add relu",
    "conv 1x256x14x14 512x3x3 s2 p1 bias relu",
    "conv 1x512x7x7 512x3x3 s1 p1 bias relu",
    "conv 1x64x56x56 256x1x1 s1 p0 bias",
    "conv 1x256x56x56 64x1x1 s1 p0 bias relu",
    "conv 1x1024x14x14 256x1x1 s1 p0 bias relu",
    "conv 1x2048x7x7 512x1x1 s1 p0 bias relu",
    # MobileNetV2
    "conv 1x3x224x224 32x3x3 s2 p1 bias relu6",
    "conv 1x16x112x112 96x1x1 s1 p0 bias relu6",
    "conv 1x24x56x56 144x1x1 s1 p0 bias relu6",
    "conv 1x144x56x56 144x3x3 s2 p1 g144 bias relu6",
    "conv 1x384x14x14 384x3x3 s1 p1 g384 bias relu6",
    "conv 1x576x14x14 96x1x1 s1 p0 bias",
    "conv 1x960x7x7 960x3x3 s1 p1 g960 bias relu6",
    # ShuffleNetV2, SqueezeNet, VGG, Inception
    "conv 1x58x28x28 58x1x1 s1 p0 bias relu",
    "conv 1x116x14x14 116x3x3 s1 p1 g116 bias",
    "conv 1x64x55x55 16x1x1 s1 p0 bias relu",
    "conv 1x32x27x27 128x3x3 s1 p1 bias relu",
    "conv 1x512x14x14 512x3x3 s1 p1 bias relu",
    "conv 1x192x17x17 192x1x7 s1 p0x3 bias relu",
)


def main(words: Sequence[str] | None = None) -> int:
    """Make the missing measurements, then print and write all of them."""
    parser = step_options("agreement", __doc__)
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="seconds of every tuning (default 20); half of it for layers that are raced again",
    )
    arguments = parser.parse_args(words)
    arguments.work.mkdir(parents=True, exist_ok=True)
    report.introduce((), {})
    carry_on(_missing(arguments.work, arguments.seconds), arguments.minutes)
    for name, table, print_ in (
        ("agreement-tunings", tunings(arguments.work), _show_tunings),
        ("agreement-later", later(arguments.work), _show_later),
    ):
        if not len(table):
            continue
        print(f"\n{name}")
        print_(table)
        write_csv(arguments.csv, name, table)
    return 0


def _missing(work: Path, seconds: float) -> Iterator[Step]:
    """The missing measurements, in order."""
    for text in REPEATED:
        for seed in range(TUNINGS):
            if not _chosen(work, text, seed):
                yield Step(f"tuning {seed}: {text}", partial(_tune, work, text, seed, seconds))
        if not (work / _name(text, "race")).exists():
            yield Step(f"race: {text}", partial(_race, work, text))
    for text in LATER:
        if not (work / _name(text, "later")).exists():
            again = partial(_again, work, text, seconds / 2)
            yield Step(f"tune and race again: {text}", again)


def _tune(work: Path, text: str, seed: int, seconds: float) -> None:
    with Database(work / f"tuning-{seed}.db") as database:
        options = SearchOptions(seed=seed)
        problems = [(ConvProblem.parse(text), 1)]
        summary = fast_run(problems, database, Budget(seconds), options=options)
    if summary.interrupted:
        raise KeyboardInterrupt


def _chosen(work: Path, text: str, seed: int) -> str | None:
    """The schedule that a tuning chose; None if it has not run."""
    path = work / f"tuning-{seed}.db"
    if not path.exists():
        return None
    with Database(path, read_only=True) as database:
        [found] = standings(database, [(ConvProblem.parse(text), 1)], Conditions.here())
    return found.best.schedule if found.best and found.best.stage == Stage.FINAL else None


def _race(work: Path, text: str) -> None:
    """Race the schedules of all tunings."""
    chosen = [s for seed in range(TUNINGS) if (s := _chosen(work, text, seed))]
    with Measurer() as measurer:
        entries = {parse_problem(text): list(dict.fromkeys(chosen))}
        times = {r.schedule: r.seconds_per_call for r in race(measurer, entries, FINAL)}
    rows = [{"tuning": i, "schedule": s, "seconds": times[s]} for i, s in enumerate(chosen)]
    (work / _name(text, "race")).write_text(json.dumps(rows))


def _again(work: Path, text: str, seconds: float) -> None:
    """Tune a layer, and race the winner again at once."""
    p = ConvProblem.parse(text)
    with Database(work / "later.db") as database:
        if fast_run([(p, 1)], database, Budget(seconds)).interrupted:
            raise KeyboardInterrupt
        [stored] = standings(database, [(p, 1)], Conditions.here())
        [found] = verify(database, [p])
    row = {
        "schedule": found.stored.schedule,
        "reported": stored.over_heuristic,
        "reported_low": stored.interval[0],
        "reported_high": stored.interval[1],
        "verdict": stored.verdict,
        "again": found.now,
        "again_low": found.interval[0],
        "again_high": found.interval[1],
        "again_verdict": found.verdict,
    }
    (work / _name(text, "later")).write_text(json.dumps(row))


def tunings(work: Path) -> pd.DataFrame:
    """A row for each tuning: its choice, and the time of the choice over that of the best one."""
    labels = layer_labels(list(map(ConvProblem.parse, REPEATED)))
    rows = []
    for text, label in zip(REPEATED, labels, strict=True):
        if (work / _name(text, "race")).exists():
            found = json.loads((work / _name(text, "race")).read_text())
            best = min(row["seconds"] for row in found)
            rows += [{"layer": label, **r, "behind": r["seconds"] / best - 1} for r in found]
    return pd.DataFrame(rows)


def later(work: Path) -> pd.DataFrame:
    """A row for each layer: the reported speed-up, and the one that was measured after it."""
    labels = layer_labels(list(map(ConvProblem.parse, LATER)))
    rows = [
        {"layer": label, **json.loads((work / _name(text, "later")).read_text())}
        for text, label in zip(LATER, labels, strict=True)
        if (work / _name(text, "later")).exists()
    ]
    table = pd.DataFrame(rows)
    if len(table):
        table["drift"] = table["again"] / table["reported"] - 1
    return table


def _show_tunings(table: pd.DataFrame) -> None:
    layers = table.groupby("layer", sort=False)
    summary = pd.DataFrame(
        {
            "layer": layers["seconds"].min().index,
            "best": layers["seconds"].min().values,
            "schedules": layers["schedule"].nunique().values,
            "worst": layers["behind"].max().values,
        }
    )
    show(
        {
            "layer": lambda r: r.layer,
            "different\nschedules>": lambda r: str(r.schedules),
            "best\nms>": lambda r: ms(r.best),
            "slowest choice\nis behind by>": lambda r: f"{100 * r.worst:.1f} %",
        }
    )(summary)
    print(
        f"{TUNINGS} tunings each: the slowest choice is behind the fastest by "
        f"{100 * summary['worst'].median():.1f} % (median), {100 * summary['worst'].max():.1f} % "
        "at most"
    )


def _show_later(table: pd.DataFrame) -> None:
    show(
        {
            "layer": lambda r: r.layer,
            "reported\nover heur.>": lambda r: ratio(r.reported),
            "95 %\ninterval>": lambda r: interval(r.reported_low, r.reported_high, 3),
            "verdict": lambda r: r.verdict,
            "again\nover heur.>": lambda r: ratio(r.again),
            "drift>": lambda r: f"{100 * r.drift:+.1f} %",
        }
    )(table)
    other = table[table["verdict"] != "heuristic"]
    for words, part in (("all layers", table), ("other schedules than the heuristic's", other)):
        drift = part["drift"].abs()
        inside = part["again"].between(part["reported_low"], part["reported_high"]).sum()
        print(
            f"{words}: {len(part)}; measured again, the speed-up differs by "
            f"{100 * drift.median():.1f} % (median), {100 * drift.max():.1f} % at most; it lies in "
            f"the reported interval {inside} times"
        )


def _name(text: str, part: str) -> str:
    return f"{text.replace(' ', '_')}.{part}.json"


if __name__ == "__main__":
    leave(ended("agreement", main))
