"""Whether several tunings of a network find plans of the same speed, and how near the best.

    python -m fastrun.benchmarks.experiments.tunings [NETWORK ...] [--tunings N] [--seconds S]
        [--longer S] [--threads N] [--minutes M] [--work FOLDER] [--csv FOLDER]

Each network is tuned several times, each time for `--seconds` with an empty database and a seed of
its own. A longer tuning then has the records of all of them. At the end the plans of all tunings,
of the longer one, and by heuristics run in turns in fresh processes. Measurements are kept
(`--work`), so that the same command continues a stopped run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from fastrun.benchmarks import report
from fastrun.benchmarks.experiments.command import show, write_csv
from fastrun.benchmarks.experiments.network_plans import raced_plans
from fastrun.benchmarks.experiments.steps import Step, carry_on, step_options
from fastrun.graph.core.model import Graph
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import make_plan
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.networks.alternatives import same
from fastrun.tuner.networks.measured_choices import guessed_choices
from fastrun.tuner.networks.tune import tune
from fastrun.tuner.records.network_record import HEURISTIC
from fastrun.tuner.records.record import NO_LIMITS
from fastrun.tuner.records.statistics import ratio_interval, typical
from fastrun.tuner.records.units import interval, ms, plural
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.options import SearchOptions
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.exits import ended, leave

NETWORKS = ("resnet18", "squeezenet1.1", "mobilenetv2", "shufflenetv2")

LONGER = "longer"
"""The name of the tuning that has the records of all others."""

NEAR = 0.02
"""Plans that are no slower than this over the fastest count as equally good."""

_PROCESSES = 3


def main(words: Sequence[str] | None = None) -> int:
    """Make the missing tunings and races, then print and write all of them."""
    parser = step_options("tunings", __doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", default=NETWORKS)
    parser.add_argument("--tunings", type=int, default=5, metavar="N", help="(default 5)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each tuning (default 60)")
    parser.add_argument(
        "--longer",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds of the one that has the records of all others (default 60; 0: none)",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="(default 1)")
    arguments = parser.parse_args(words)
    arguments.work.mkdir(parents=True, exist_ok=True)
    report.introduce((), {})
    names = [*map(str, range(arguments.tunings)), *([LONGER] if arguments.longer else [])]
    tuned = [Tunings(x, arguments.work, arguments.threads, names) for x in arguments.networks]
    missing = (x.missing(arguments.seconds, arguments.longer) for x in tuned)
    carry_on(chain.from_iterable(missing), arguments.minutes)
    tables = [x.table() for x in tuned if x.race.exists()]
    if tables:
        table = pd.concat(tables, ignore_index=True)
        _print(table)
        write_csv(arguments.csv, "tunings", table)
    return 0


@dataclass(frozen=True)
class Tunings:
    """The tunings of one network: their databases, the last plan of each, the race of all plans."""

    network: str
    work: Path
    threads: int
    names: Sequence[str]

    @property
    def race(self) -> Path:
        """The file of the race."""
        return self._file("race", "json")

    @cached_property
    def graph(self) -> Graph:
        """The optimised network."""
        return optimise(load_network(self.network))

    def missing(self, seconds: float, longer: float) -> Iterator[Step]:
        """The steps that are missing, in order."""
        for seed, name in enumerate(self.names):
            if not self._plan(name).exists():
                lasts = longer if name == LONGER else seconds
                yield Step(f"{self.network}: tuning {name}", partial(self._tune, name, seed, lasts))
        if not self.race.exists():
            yield Step(f"{self.network}: race of all plans", self._race)

    def _tune(self, name: str, seed: int, seconds: float) -> None:
        with Database(self._file(name, "db")) as database:
            if name == LONGER:
                for other in self.names[:-1]:
                    database.merge(self._file(other, "db"))
            tuned = tune(
                self.network,
                database,
                Budget(seconds),
                threads=self.threads,
                options=SearchOptions(seed=seed),
                quiet=True,
            )
        if tuned.search.interrupted:
            raise KeyboardInterrupt
        [final] = tuned.finals.values()
        self._plan(name).write_text(final.plan)

    def _race(self) -> None:
        plans = {HEURISTIC: self._heuristic()}
        plans |= {name: Plan.load(self._plan(name)) for name in self.names}
        raced = {x: next(y for y in plans if same(plans[y], plan)) for x, plan in plans.items()}
        racing = {name: plans[name] for name in dict.fromkeys(raced.values())}
        samples = raced_plans(self.graph, racing, self.threads, _PROCESSES, quick=False)
        found = {"same": raced, "samples": samples, "processes": _PROCESSES}
        self.race.write_text(json.dumps(found))

    def table(self) -> pd.DataFrame:
        """A row for each tuning: the time of its plan, and how far it is behind the fastest.

        `low` and `high` are the 95 % interval of that, over the processes of the race.
        """
        found = json.loads(self.race.read_text())
        samples: dict[str, list[float]] = found["samples"]
        rounds = len(samples[HEURISTIC]) // found["processes"]
        grouped = {
            name: [times[i : i + rounds] for i in range(0, len(times), rounds)]
            for name, times in samples.items()
        }
        fastest = min(samples, key=lambda name: typical(samples[name]))
        rows: list[dict[str, Any]] = []
        for name, ran in found["same"].items():
            ends = (1.0, 1.0)
            if ran != fastest:
                ends = ratio_interval(grouped[ran], grouped[fastest], paired=True)
            seconds = typical(samples[ran])
            rows.append(
                {
                    "network": self.network,
                    "tuning": name,
                    "same": ran if ran != name else "",
                    "seconds": seconds,
                    "behind": seconds / typical(samples[fastest]) - 1,
                    "low": ends[0] - 1,
                    "high": ends[1] - 1,
                }
            )
        return pd.DataFrame(rows)

    def _file(self, name: str, ending: str) -> Path:
        return self.work / f"{Path(self.network).stem}-{self.threads}-{name}.{ending}"

    def _plan(self, name: str) -> Path:
        return self._file(name, "plan")

    def _heuristic(self) -> Plan:
        cpu = Cpu.host()
        guess = guessed_choices(cpu, self.threads, NO_LIMITS)
        return make_plan(self.graph, guess, cpu, threads=self.threads)[0]


def _print(table: pd.DataFrame) -> None:
    show(
        {
            "network": lambda r: r.network,
            "tuning": lambda r: r.tuning,
            "same plan as": lambda r: r.same,
            "ms>": lambda r: ms(r.seconds),
            "behind\nthe fastest>": lambda r: f"{100 * r.behind:.1f} %",
            "95 %\ninterval, %>": lambda r: interval(100 * r.low, 100 * r.high),
        }
    )(table)
    for network, of_network in table.groupby("network", sort=False):
        tunings = of_network[~of_network["tuning"].isin([HEURISTIC, LONGER])]["behind"]
        near = int((tunings <= NEAR).sum())
        apart = (1 + tunings.max()) / (1 + tunings.min()) - 1
        print(
            f"{network}: {near} of {plural(len(tunings), 'tuning')} within {100 * NEAR:.0f} % of "
            f"the fastest plan; their plans differ by {100 * apart:.1f} % at most"
        )


if __name__ == "__main__":
    leave(ended("tunings", main))
