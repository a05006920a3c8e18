"""One line that shows how far a search is: in a terminal, or under a notebook's cell."""

from __future__ import annotations

import html
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from fastrun.tuner.records.units import clock, ms, plural, ratio

if TYPE_CHECKING:
    from fastrun.tuner.records.record import Record
    from fastrun.tuner.search.budget import Budget
    from fastrun.tuner.search.problem_search import ProblemSearch

_EVERY = 0.2  # seconds between two drawings


@dataclass(frozen=True)
class Progress:
    """What an observer is told after every outcome.

    `stage` is search, final or done; `record` the newest outcome; `left` the seconds of the
    budget that remain, below 0 where it is overrun.
    """

    stage: str
    searches: Sequence[ProblemSearch]
    record: Record | None
    trials: int
    elapsed: float
    left: float | None


Observe = Callable[[Progress], None]


def default_observer(budget: Budget) -> Observe | None:
    """What shows the progress where somebody sees it; None for scripts without a terminal."""
    if cell := _cell():
        return ProgressLine(budget, cell)
    if sys.stderr is not None and sys.stderr.isatty():
        return ProgressLine(budget, _Terminal(sys.stderr))
    return None


class ProgressLine:
    """An observer of `fast_run`: a bar, the trials, the best so far and the time that is left."""

    def __init__(self, budget: Budget, show: Callable[[float, str, bool], None]) -> None:
        self._budget, self._show, self._drawn = budget, show, -math.inf

    def __call__(self, progress: Progress) -> None:
        done, now = progress.stage == "done", time.monotonic()
        if done or now - self._drawn >= _EVERY:
            self._drawn = now
            self._show(1.0 if done else self._share(progress), _told(progress), done)

    def _share(self, progress: Progress) -> float:
        if self._budget.seconds is not None:
            return min(1.0, progress.elapsed / self._budget.seconds)
        if self._budget.trials is not None:
            return min(1.0, progress.trials / (self._budget.trials * len(progress.searches)))
        return 0.0


def _told(progress: Progress) -> str:
    """`racing the fastest · 120 trials · best 1.23 ms, 14.1x over naive · 0:35 left`."""
    doing = {"search": [], "final": ["racing the fastest"], "done": ["done"]}[progress.stage]
    parts = [*doing, plural(progress.trials, "trial")]
    begun = [s for s in progress.searches if s.incumbent]
    if begun:
        best = math.fsum(s.occurrences * s.best for s in begun)
        naive = math.fsum(s.occurrences * s.naive for s in begun)
        over = f", {ratio(naive / best)} over naive" if naive < math.inf else ""
        of = f" of {len(begun)} problems" if len(progress.searches) > 1 else ""
        parts.append(f"best {ms(best)} ms{of}{over}")
    if progress.stage == "done":
        parts.append(f"took {clock(progress.elapsed)}")
    elif progress.left is not None:
        late = progress.left < 0
        parts.append(f"{clock(abs(progress.left))} {'over the budget' if late else 'left'}")
    return " · ".join(parts)


class _Terminal:
    """A line of a terminal that is written again and again."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, share: float, text: str, done: bool) -> None:
        full = round(24 * share)
        line = f"{'━' * full}{'╌' * (24 - full)} {text}"
        room = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\x1b[K{line[:room]}" + "\n" * done)
        self._stream.flush()


class _Cell:
    """The output of a notebook's cell, which is replaced."""

    def __init__(self, display: Any, shown: type) -> None:
        self._display, self._shown, self._handle = display, shown, None

    def __call__(self, share: float, text: str, done: bool) -> None:
        bar = f'<progress value="{share:.3f}" max="1" style="width: 14em"></progress>'
        picture = self._shown(f"<div>{bar} {html.escape(text)}</div>")
        if self._handle is None:
            self._handle = self._display(picture, display_id=True)
        else:
            self._handle.update(picture)


def _cell() -> _Cell | None:
    """The cell that is being executed, if this process is a notebook's kernel."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell else None
    if running is None or not hasattr(running, "kernel"):
        return None
    from IPython.display import HTML, display

    return _Cell(display, HTML)
