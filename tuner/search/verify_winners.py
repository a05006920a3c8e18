"""Whether stored winners still win: they race the heuristics again, in fresh processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastrun.kernels.core.attention import Problem
from fastrun.tuner.measure.measurer import Measurer, heuristic_text
from fastrun.tuner.measure.races import FINAL, race
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import Conditions, Outcome, Record
from fastrun.tuner.records.verdicts import speedup_interval, verdict
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.staleness import is_current


@dataclass(frozen=True)
class Verification:
    """A problem's stored winner, and how it did against today's heuristic when raced again.

    `stored` is the winner's record, `before` how many times faster than the heuristic it was in the
    same race (NaN where none was stored). `stale` says that today's generator or compiler makes
    other code of its schedule than what was measured. `winner` and `heuristic` are the new records,
    one and the same where the heuristic's schedule is the winner.
    """

    problem: Problem
    stored: Record
    before: float
    stale: bool
    winner: Record
    heuristic: Record

    @property
    def now(self) -> float:
        """How many times faster than the heuristic the winner was just now; NaN if it failed."""
        if not (self.winner.samples and self.heuristic.samples):
            return math.nan
        return self.heuristic.seconds_per_call / self.winner.seconds_per_call

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `now`."""
        return speedup_interval(self.heuristic, self.winner)

    @property
    def drift(self) -> float:
        """By what share `now` is above what was stored."""
        return self.now / self.before - 1

    @property
    def verdict(self) -> str:
        """`failed`, `slower` (the heuristic's is surely faster), or as `Standing.verdict` says."""
        if self.winner.outcome != Outcome.CORRECT:
            return "failed"
        if self.interval[1] < 1:
            return "slower"
        if self.winner.schedule == self.heuristic.schedule:
            return "heuristic"
        return verdict(self.heuristic, self.winner)

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against using the winner."""
        return self.verdict not in ("failed", "slower")


def verify(
    database: Database,
    problems: Sequence[Problem],
    *,
    threads: int = 1,
    regime: str = "hot",
) -> Iterator[Verification]:
    """Race the stored winner of each problem that has one against the heuristic, and store it.

    Winners of an older generator or compiler take part: what counts of them from now on is what is
    measured here.

    Raises:
        ValueError: more threads than cores.
        DatabaseError: the database cannot be read or written.
    """
    conditions = Conditions.here(threads, regime)
    winners = {p: database.best(p, conditions) for p in problems}
    known = {p: winner for p, winner in winners.items() if winner}
    if not known:
        return
    entries = {
        p: list(dict.fromkeys([winner.schedule, heuristic_text(p)])) for p, winner in known.items()
    }
    new: dict[tuple[str, str], Record] = {}
    with Measurer(threads, regime) as measurer:
        database.add_environment(Environment.host(), measurer.run)
        call = f"verify({len(problems)} problems, threads={threads}, regime={regime!r})"
        database.add_run(Run(name=measurer.run, command=call, timing=f"final: {FINAL}"))
        for record in race(measurer, entries, FINAL):
            database.add(record)
            new[record.problem, record.schedule] = record
    for p, winner in known.items():
        yield Verification(
            problem=p,
            stored=winner,
            before=_over_heuristic(database, winner),
            stale=not is_current(winner),
            winner=new[str(p), winner.schedule],
            heuristic=new[str(p), heuristic_text(p)],
        )


def _over_heuristic(database: Database, winner: Record) -> float:
    """How many times faster than the heuristic a winner was in the race that it won."""
    records = database.records(problem=winner.problem, run=winner.run, stage=winner.stage)
    times = [r.seconds_per_call for r in records if r.heuristic and r.samples]
    return times[0] / winner.seconds_per_call if times else math.nan
