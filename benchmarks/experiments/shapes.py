"""Measures some schedules of many shapes, as data for models of their times.

    python -m fastrun.benchmarks.experiments.shapes TARGET ... --db FILE [--seconds S] [--avx2]

Each convolution of the targets gets the schedules of `candidates`, which race each other in one
process. Shapes come in random order, those that the database has are left out, and no new one
begins after `--seconds`, so that the same command continues. With `--avx2` the code is that of a
processor with AVX2 and the caches of this one.
"""

from __future__ import annotations

import random
from argparse import ArgumentParser
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import monotonic

from fastrun.benchmarks import report
from fastrun.kernels.core.attention import Problem, parse_problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.registry import applicable, heuristic_choice
from fastrun.search_spaces.space import space_for
from fastrun.search_spaces.untried import Untried
from fastrun.tuner.measure.job import Compiled, Result
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.model.cost_model import shipped_proposals
from fastrun.tuner.networks.targets import merged, read_target
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import Record, Stage
from fastrun.tuner.records.units import plural
from fastrun.tuner.search.transfer import suggestions
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.exits import ended, leave

# How many algorithms, those with the highest ranks, have neighbours of their heuristic's schedule
# and random ones, and how many of each; how many other algorithms have their heuristic's schedule;
# how many come from other shapes; how many the model proposes that there is, which so learns where
# it expects too much.
_EXPLORED, _NEIGHBOURS, _RANDOM = 2, 2, 1
_ALGORITHMS, _TRANSFERRED, _PROPOSED = 3, 2, 2

_ROUNDS = 12

# Shapes that are compiled while one races.
_AHEAD = 3


def candidates(p: Problem, cpu: Cpu, winners: Mapping[Problem, str], seed: int = 0) -> list[str]:
    """The heuristics' schedules, their neighbours, random ones, proposed and near ones."""
    draw = random.Random(f"{p} {seed}")
    best, _ = heuristic_choice(p, cpu)
    others = [t for t in applicable(p, cpu) if not t.baseline and t is not best]
    others.sort(key=lambda t: t.rank(p, cpu), reverse=True)
    usual = {t: t.heuristic(p, cpu) for t in [best, *others[:_ALGORITHMS]]}
    found = [t.text(s) for t, s in usual.items()]
    found += [text for _, text in islice(suggestions(p, winners, cpu), _TRANSFERRED)]
    found += shipped_proposals(p, cpu, _PROPOSED)
    for template, schedule in islice(usual.items(), _EXPLORED):
        untried = Untried(space_for(template.name, p, cpu), draw.randrange(1 << 30))
        found += [template.text(s) for s in islice(untried.neighbours(schedule), _NEIGHBOURS)]
        found += [template.text(s) for s in untried.sample(_RANDOM)[:_RANDOM]]
    return list(dict.fromkeys(found))


def raced(
    measurer: Measurer,
    entries: Iterable[tuple[Problem, Sequence[str]]],
    seconds: float,
    rounds: int = _ROUNDS,
) -> Iterator[Record]:
    """A record of each schedule of the problems whose race begins within `seconds`."""
    begin, todo = monotonic(), iter(entries)
    ahead = deque[tuple[Problem, dict[str, Future[Compiled | Result]]]]()

    def compile_next() -> None:
        for p, schedules in islice(todo, 1):
            ahead.append((p, {text: measurer.compile(p, text) for text in schedules}))

    for _ in range(_AHEAD):
        compile_next()
    while ahead and monotonic() - begin < seconds:
        p, compiling = ahead.popleft()
        compile_next()
        made = {text: future.result() for text, future in compiling.items()}
        yield from _race(measurer, p, made, rounds)
        measurer.forget(p)
    for _, compiling in ahead:
        for future in compiling.values():
            future.cancel()


def _race(
    measurer: Measurer, p: Problem, made: Mapping[str, Compiled | Result], rounds: int
) -> Iterator[Record]:
    programs = {text: program for text, program in made.items() if isinstance(program, Compiled)}
    jobs = [measurer.job(p, program) for program in programs.values()]
    results = measurer.sandbox.race(jobs, rounds).result()
    for (text, program), result in zip(programs.items(), results, strict=True):
        yield measurer.record(p, text, result, program, Stage.SCREEN)
        program.discard()
    for text, failed in made.items():
        if not isinstance(failed, Compiled):
            yield measurer.record(p, text, failed, None, Stage.SCREEN)


def narrowed(cpu: Cpu) -> Cpu:
    """The processor as one with AVX2 and no more, whose code it can run."""
    return replace(Cpu.avx2(), model=cpu.model, l1=cpu.l1, l2=cpu.l2, l3=cpu.l3, cores=cpu.cores)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and store."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.experiments.shapes",
        description=str(__doc__).split("\n")[0],
    )
    parser.add_argument("targets", nargs="+", metavar="TARGET")
    parser.add_argument("--db", type=Path, required=True, metavar="FILE", help="add records here")
    parser.add_argument("--seconds", type=float, default=100.0, help="(default 100)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="(default 1)")
    parser.add_argument("--avx2", action="store_true", help="measure code for AVX2")
    arguments = parser.parse_args(words)
    report.introduce((), {})
    cpu = narrowed(Cpu.host()) if arguments.avx2 else Cpu.host()
    problems = [p for p, _ in merged([read_target(text) for text in arguments.targets])]
    random.Random(0).shuffle(problems)
    with (
        Database(arguments.db) as database,
        Measurer(arguments.threads, cpu=cpu) as measurer,
    ):
        best = database.best_all(measurer.conditions)
        winners = {parse_problem(text): record.schedule for text, record in best.items()}
        known = {r.problem for r in database.records(machine=cpu.fingerprint)}
        todo = [p for p in problems if str(p) not in known and not p.types]
        entries = ((p, candidates(p, cpu, winners)) for p in todo)
        database.add_run(
            Run(name=measurer.run, command="shapes", timing=f"{_ROUNDS} rounds of 1 ms blocks")
        )
        done = set()
        for record in raced(measurer, entries, arguments.seconds):
            database.add(record)
            done.add(record.problem)
    print(f"{plural(len(done), 'shape')} measured, {len(todo) - len(done)} left")
    return 0


if __name__ == "__main__":
    leave(ended("shapes", main))
