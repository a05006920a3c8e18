"""What the terminal shows: tables, and a run as it happens. The only file that imports rich.

On a terminal a run is a board that renews itself; elsewhere it is one plain line per event. Colours
follow the terminal and NO_COLOR, and carry nothing that the words do not say.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.network_record import HEURISTIC, NetworkRecord
from tuner.record import Outcome, Record
from tuner.standing import Standing, network_seconds, of_network, seconds
from tuner.targets import Target
from tuner.units import UNKNOWN, clock, interval, ms, percent, plural, ratio

if TYPE_CHECKING:  # these load Optuna, which a table needs not
    from tuner.budget import Budget
    from tuner.fastrun import Progress
    from tuner.search import ProblemSearch

HEARTBEAT = 10.0
"""Seconds between two plain lines that say that the run is alive."""

_PLAIN_WIDTH = 200


def screen() -> Console:
    """Standard output. Where that is no terminal, lines are long enough to break no table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def grid(console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. A head that ends in `>` is of a column of numbers, aligned to the right."""
    table = _table()
    for head in heads:
        _column(table, head)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def standings_table(console: Console, found: Sequence[Standing], peak: float) -> None:
    """Print where each problem stands; `peak` is the measured FLOP/s that shares are of."""
    columns: dict[str, Callable[[Standing], str]] = {
        "problem": lambda s: str(s.problem),
        "n>": lambda s: str(s.count),
        "naive\nms>": lambda s: ms(seconds(s.naive)),
        "heur.\nms>": lambda s: ms(seconds(s.heuristic)),
        "best\nms>": lambda s: ms(seconds(s.best)),
        "over\nnaive>": lambda s: ratio(s.over_naive),
        "over\nheur.>": lambda s: ratio(s.over_heuristic),
        "GFLOP\n/s>": lambda s: f"{s.gflops:.1f}" if s.best else UNKNOWN,
        "of\npeak>": lambda s: percent(s.gflops * 1e9 / peak),
        "winner": lambda s: s.best.algorithm if s.best else UNKNOWN,
        "verdict": lambda s: s.verdict,
    }
    # What a narrow terminal has no room for follows from what it shows, or is in the report.
    dropped: tuple[str, ...] = ("verdict",) if console.width < 120 else ()
    dropped += ("heur.\nms>", "GFLOP\n/s>") if console.width < 100 else ()
    shown = {head: column for head, column in columns.items() if head not in dropped}
    grid(console, list(shown), [[column(s) for column in shown.values()] for s in found])
    if any(s.gflops * 1e9 > peak for s in found if s.best):
        console.print(
            "More than 100 % of peak: Winograd multiplies less than the direct method, "
            "whose operations are counted."
        )


def network_sums(console: Console, target: Target, found: Sequence[Standing]) -> None:
    """Print what all convolutions of a network take, one after the other."""
    own = of_network(found, target.problems)
    naive, heuristic, best = network_seconds(own)
    console.print(
        f"[bold]{escape(target.name)}[/], all {plural(sum(s.count for s in own), 'convolution')}: "
        f"naive {ms(naive)} ms, heuristic {ms(heuristic)} ms, "
        f"[bold green]best {ms(best)} ms[/]: {ratio(naive / best)} over naive, "
        f"{ratio(heuristic / best)} over the heuristic"
    )


def final_table(console: Console, record: NetworkRecord, naive: float) -> None:
    """Print how a network's plans raced; `naive` are the seconds of its layers' naive loops."""
    rows = [("naive loops, sum of layers", ms(naive), "", "")]
    for name in record.samples:
        over = ratio(record.seconds(HEURISTIC) / record.seconds(name))
        rows.append((name, ms(record.seconds(name)), over, interval(*record.interval(name), 3)))
    console.print()
    heads = (f"{record.network} as a whole", "ms>", "over heur.>", "95 % interval>")
    grid(console, heads, rows)
    console.print(f"kept: [bold]{escape(record.kept)}[/], {record.verdict}")


class Board:
    """Shows a run as it happens: an observer of `fast_run`, and a context.

    `budget` is of all that the command does, of which `fast_run` may be a part.
    """

    def __init__(self, console: Console, title: str, budget: Budget) -> None:
        self._console, self._title, self._budget = console, title, budget
        self._live = Live(console=console, auto_refresh=False, transient=True)
        # A dumb terminal cannot take back what it has shown.
        self._lively = console.is_terminal and not console.is_dumb_terminal
        self._best: dict[str, float] = {}
        self._spoken = self._drawn = -math.inf

    def __enter__(self) -> Self:
        self._line(0.0, f"{self._title}; starting")
        if self._lively:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lively:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        if self._lively:
            now = time.monotonic()
            if now - self._drawn > 0.1 or progress.stage == "done":
                self._drawn = now
                self._live.update(self._picture(progress), refresh=True)
        else:
            self._narrate(progress)

    def _picture(self, progress: Progress) -> Group:
        newest = progress.record
        doing = {"search": "searching", "final": "racing the leaders", "done": "done"}
        state = [doing[progress.stage], _pace(progress)]
        state += self._left(progress)
        status = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=1.0, completed=self._share(progress), width=24)
        status.add_row(Text(" · ".join(state)), bar)
        table = _table()
        room = max(20, self._console.width - 50)
        table.add_column("\nlayer", no_wrap=True, overflow="ellipsis", max_width=room)
        for head in ("\nn>", "\ntrials>", "naive\nms>", "best\nms>", "over\nnaive>", "\nalgorithm"):
            _column(table, head)
        shown = _most_recent(progress.searches, newest, max(3, self._console.height - 9))
        for search in shown:
            active = newest is not None and str(search.problem) == newest.problem
            table.add_row(*_layer(search), style="bold" if active else None)
        if hidden := len(progress.searches) - len(shown):
            table.add_row(f"and {hidden} more", style="dim")
        return Group(
            Text(self._title, style="bold", no_wrap=True, overflow="ellipsis"),
            status,
            table,
            Text(newest.schedule if newest else "", "dim", no_wrap=True, overflow="ellipsis"),
        )

    def _share(self, progress: Progress) -> float:
        if self._budget.seconds is not None:
            return min(1.0, progress.elapsed / self._budget.seconds)
        if self._budget.trials is not None:
            return progress.trials / max(1, self._budget.trials * len(progress.searches))
        return 0.0

    def _left(self, progress: Progress) -> list[str]:
        """How much time is left, or by how much it is overrun; nothing where there is no limit."""
        if self._budget.seconds is None:
            return []
        left = self._budget.seconds - progress.elapsed
        return [f"{clock(left)} left" if left >= 0 else f"{clock(-left)} over its time"]

    def _narrate(self, progress: Progress) -> None:
        record, at = progress.record, progress.elapsed
        if record is not None:
            search = next(s for s in progress.searches if str(s.problem) == record.problem)
            for event in self._events(search, record):
                self._line(at, f"{record.problem}: {event}")
        if at - self._spoken >= HEARTBEAT:
            self._line(at, ", ".join([_pace(progress), *self._left(progress)]))
        if progress.stage == "done":
            self._line(at, f"done: {_pace(progress)}")

    def _events(self, search: ProblemSearch, record: Record) -> list[str]:
        """What is worth a line: baselines, new bests, and failures that are nobody's choice."""
        if record.outcome not in (Outcome.CORRECT, Outcome.CONSTRAINTS):
            return [f"{record.schedule} failed ({record.outcome}): {record.reason}"]
        if record.outcome == Outcome.CONSTRAINTS:
            return []
        took = record.seconds_per_call
        if record.stage != "screen":
            return []
        if record.baseline:
            return [f"baseline {record.algorithm} {ms(took)} ms"]
        if took >= self._best.get(record.problem, math.inf):
            return []
        self._best[record.problem] = took
        gain = f", {ratio(search.naive / took)} over naive" if search.naive < math.inf else ""
        return [f"new best {ms(took)} ms{gain}: {record.schedule}"]

    def _line(self, at: float, text: str) -> None:
        if not self._lively:
            self._spoken = at
            print(f"[{at:6.1f} s] {text}", flush=True)


def _pace(progress: Progress) -> str:
    rate = progress.trials / progress.elapsed if progress.elapsed else 0.0
    return f"{plural(progress.trials, 'trial')}, {rate:.1f}/s"


def _layer(search: ProblemSearch) -> list[str]:
    leader = search.leader.algorithm if search.leader else UNKNOWN
    over = search.naive / search.best if search.best < math.inf else math.nan
    trials = sum(search.outcomes.values())
    return [
        *(str(search.problem), str(search.occurrences), str(trials)),
        *(ms(search.naive), ms(search.best), ratio(over), leader),
    ]


def _most_recent(
    searches: Sequence[ProblemSearch], newest: Record | None, room: int
) -> Sequence[ProblemSearch]:
    """As many searches as there is room for, in order, those round the newest outcome's."""
    at = next((i for i, s in enumerate(searches) if newest and str(s.problem) == newest.problem), 0)
    start = max(0, min(at - room // 2, len(searches) - room))
    return searches[start : start + room]


def _table() -> Table:
    return Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )


def _column(table: Table, head: str) -> None:
    number = head.endswith(">")
    table.add_column(
        head.removesuffix(">"),
        justify="right" if number else "left",
        no_wrap=number,
        overflow="fold",
        vertical="top",
    )
