"""The board: shows a run while it happens."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastrun.tuner.records.record import Outcome, Record, Stage
from fastrun.tuner.records.units import UNKNOWN, clock, ms, plural, ratio

if TYPE_CHECKING:  # these load Optuna, which a table does not need
    from fastrun.tuner.search.budget import Budget
    from fastrun.tuner.search.problem_search import ProblemSearch
    from fastrun.tuner.search.progress import Progress
from fastrun.tuner.terminal.display import HEARTBEAT, add_column, new_table
from fastrun.tuner.terminal.live import Redrawn


class Board(Redrawn):
    """Shows a run while it happens: an observer of `fast_run`, and a context manager.

    `budget` is that of the whole command, of which `fast_run` may be a part.
    """

    def __init__(self, console: Console, title: str, budget: Budget) -> None:
        super().__init__(console)
        self._title, self._budget = title, budget
        self._best: dict[str, float] = {}
        self._spoken = self._drawn = -math.inf

    def __enter__(self) -> Self:
        self._line(0.0, f"{self._title}; starting")
        return super().__enter__()

    def __call__(self, progress: Progress) -> None:
        if self.lively:
            now = time.monotonic()
            if now - self._drawn > 0.1 or progress.stage == "done":
                self._drawn = now
                self.draw(self._picture(progress))
        else:
            self._narrate(progress)

    def _picture(self, progress: Progress) -> Group:
        newest = progress.record
        doing = {"search": "searching", "final": "racing the fastest", "done": "done"}
        state = [doing[progress.stage], _pace(progress)]
        state += self._left(progress)
        status = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=1.0, completed=self._share(progress), width=24)
        status.add_row(Text(" · ".join(state)), bar)
        table = new_table()
        room = max(20, self.console.width - 50)
        table.add_column("\nlayer", no_wrap=True)
        for head in ("\nn>", "\ntrials>", "naive\nms>", "best\nms>", "over\nnaive>", "\nalgorithm"):
            add_column(table, head)
        shown = _most_recent(progress.searches, newest, max(3, self.console.height - 9))
        for search in shown:
            active = newest is not None and str(search.problem) == newest.problem
            name, *cells = _layer(search)
            table.add_row(shortened(name, room), *cells, style="bold" if active else None)
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
        """The time left, or by how much the budget is exceeded; nothing if there is no limit."""
        if self._budget.seconds is None:
            return []
        left = self._budget.seconds - progress.elapsed
        return [f"{clock(left)} left" if left >= 0 else f"{clock(-left)} over the budget"]

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
        """Lines to print: baselines, new best times, and failures other than refused schedules."""
        if record.outcome not in (Outcome.CORRECT, Outcome.CONSTRAINTS):
            return [f"{record.schedule} failed ({record.outcome}): {record.reason}"]
        if record.outcome == Outcome.CONSTRAINTS:
            return []
        took = record.seconds_per_call
        if record.stage != Stage.SCREEN:
            return []
        if record.baseline:
            return [f"baseline {record.algorithm} {ms(took)} ms"]
        if took >= self._best.get(record.problem, math.inf):
            return []
        self._best[record.problem] = took
        gain = f", {ratio(search.naive / took)} over naive" if search.naive < math.inf else ""
        return [f"new best {ms(took)} ms{gain}: {record.schedule}"]

    def _line(self, at: float, text: str) -> None:
        if not self.lively and not self.console.quiet:
            self._spoken = at
            print(f"[{at:6.1f} s] {text}", file=sys.stderr, flush=True)


def _pace(progress: Progress) -> str:
    rate = progress.trials / progress.elapsed if progress.elapsed else 0.0
    return f"{plural(progress.trials, 'trial')}, {rate:.1f}/s"


def _layer(search: ProblemSearch) -> list[str]:
    fastest = search.incumbent.algorithm if search.incumbent else UNKNOWN
    over = search.naive / search.best if search.best < math.inf else math.nan
    trials = sum(search.outcomes.values())
    return [
        *(str(search.problem), str(search.occurrences), str(trials)),
        *(ms(search.naive), ms(search.best), ratio(over), fastest),
    ]


def shortened(text: str, room: int) -> str:
    """The text with its middle left out, if it needs it: problems often differ at their ends."""
    if len(text) <= room:
        return text
    end = room // 3
    return f"{text[: room - end - 1]}…{text[-end:]}"


def _most_recent(
    searches: Sequence[ProblemSearch], newest: Record | None, room: int
) -> Sequence[ProblemSearch]:
    """The searches around that of the newest record, as many as there is room for, in order."""
    at = next((i for i, s in enumerate(searches) if newest and str(s.problem) == newest.problem), 0)
    start = max(0, min(at - room // 2, len(searches) - room))
    return searches[start : start + room]
