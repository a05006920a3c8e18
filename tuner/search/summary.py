"""What a run did: as text, as a table, as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.notebook import card
from fastrun.tuner.records.units import clock, ms, plural, ratio
from fastrun.tuner.search.problem_search import ProblemSearch

if TYPE_CHECKING:
    import pandas as pd

    from fastrun.tuner.report.style import Figure


@dataclass(frozen=True)
class Summary:
    """What a run did. `trials` counts outcomes of this run, `known` those it found stored.

    `settled` are the problems whose search ended before its budget: they had levelled off, or
    nothing was left to try. `left_out` says in words what the budget had no time for.
    """

    run: str
    searches: Sequence[ProblemSearch]
    trials: int
    known: int
    seconds: float
    interrupted: bool
    settled: Sequence[Problem] = ()
    left_out: Sequence[str] = ()

    def frame(self) -> pd.DataFrame:
        """A row for every problem, in the order of the network.

        Columns `problem`, `occurrences`, `trials`, the seconds per call `naive`, `heuristic` and
        `best` (NaN where nothing correct was measured), `over_naive` and `over_heuristic` (how many
        times faster the best is), `algorithm` and `schedule`.
        """
        import pandas as pd  # which a search does without

        rows = [
            {
                "problem": str(search.problem),
                "occurrences": search.occurrences,
                "trials": search.outcomes.total(),
                "naive": _known(search.naive),
                "heuristic": _known(search.heuristic_seconds),
                "best": _known(search.best),
                "over_naive": _known(search.naive / search.best),
                "over_heuristic": _known(search.heuristic_seconds / search.best),
                "algorithm": search.incumbent.algorithm if search.incumbent else "",
                "schedule": search.incumbent.schedule if search.incumbent else "",
            }
            for search in self.searches
        ]
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """How the best time of every problem fell over its trials, those known before included."""
        import pandas as pd

        from fastrun.tuner.report.plots import convergence

        rows = [
            (str(search.problem), number, _known(best))
            for search in self.searches
            for number, best in enumerate(search.history, 1)
        ]
        return convergence(pd.DataFrame(rows, columns=["problem", "trial", "best"]))

    def __str__(self) -> str:
        return "\n".join([f"run {self.run}: {self._told()}", *map(str, self.searches)])

    def _told(self) -> str:
        parts = [f"{plural(self.trials, 'trial')} in {clock(self.seconds)}"]
        parts += [f"{self.known} known before"] if self.known else []
        parts += ["interrupted"] if self.interrupted else []
        parts += [f"left out: {'; '.join(self.left_out)}"] if self.left_out else []
        return ", ".join(parts)

    def _repr_html_(self) -> str:
        table = self.frame().drop(columns="schedule")
        for name in ("naive", "heuristic", "best"):
            table[name] = [ms(value) for value in table[name]]
        for name in ("over_naive", "over_heuristic"):
            table[name] = [ratio(value) for value in table[name]]
        heads = {"naive": "naive, ms", "heuristic": "heuristic, ms", "best": "best, ms"}
        heads |= {name: name.replace("_", " ") for name in ("over_naive", "over_heuristic")}
        shown = table.rename(columns=heads).to_html(index=False, border=0)
        return card(f"run {self.run}", {"done": self._told()}) + shown


def _known(seconds: float) -> float:
    return seconds if math.isfinite(seconds) else math.nan
