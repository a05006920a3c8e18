"""The commands of `fastrun`: each takes the parsed arguments and returns an exit code."""

from __future__ import annotations

import json
import math
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernels.codegen.jit import cache_root, compile_assembly
from kernels.core.cpu import Cpu
from kernels.core.problem import ConvProblem
from kernels.core.template import (
    KernelTemplate,
    ScheduleError,
    heuristic_choice,
    parse_schedule,
    templates,
)
from tuner.database import Database, DatabaseError
from tuner.display import grid, network_sums, screen, standings_table
from tuner.environment import Environment
from tuner.machine import MachineReport, probe
from tuner.record import Record
from tuner.standing import Standing, network_seconds, seconds, standings
from tuner.targets import Target, merged, read_target
from tuner.timing import canary
from tuner.units import UNKNOWN, duration, ms, percent, plural, significant, size

SECONDS_PER_PROBLEM = 8.0
"""The default budget: what the schedules of a problem take to level off."""

DEMO_SECONDS = 110.0

INTERRUPTED = 130


def doctor(arguments: Namespace) -> int:
    """Say what is known about this machine, and measure what is not."""
    report, cpu, here = probe(arguments.refresh), Cpu.host(), Environment.host()
    caches = (("L1", cpu.l1), ("L2", cpu.l2), ("L3", cpu.l3))
    limit = "none" if here.cpu_limit is None else f"{significant(here.cpu_limit)} cores of time"
    memory = "" if here.memory_limit is None else f", {size(here.memory_limit)} of it allowed"
    settings = {"governor": here.governor, "turbo": here.turbo, "SMT": here.smt}
    features = {f[1:] for f in cpu.features.split(",") if f.startswith("+")}
    rates = ", ".join(f"{level} {rate / 1e9:.0f}" for level, rate in report.read_streams.items())
    lines = [
        ("processor", f"{cpu.model} ({cpu.name}), {plural(cpu.cores, 'core')} to use"),
        ("vectors", f"{cpu.lanes} floats wide, {cpu.registers} registers"),
        ("features", " ".join(sorted(features & _FEATURES)) or UNKNOWN),
        ("caches", ", ".join(f"{level} {size(n)}" for level, n in caches if n)),
        ("memory", f"{size(here.memory)}{memory}"),
        ("CPU limit", limit),
        ("settings", ", ".join(f"{k} {v or 'unknown'}" for k, v in settings.items())),
        ("system", f"{here.system}, {here.kernel}"),
        ("versions", ", ".join(f"{name} {v}" for name, v in here.versions.items())),
        ("", ""),
        ("measured", f"{report.time[:16]} UTC; --refresh measures again"),
        ("peak", f"{_peak_text(report)} of float32 multiply-adds"),
        ("reading", f"{rates} GB/s on one core"),
        ("noise", f"{percent(report.noise)} then, {percent(_noise_now())} now: {_advice(report)}"),
        ("load", ", ".join(f"{x:.2f}" for x in here.load) + " over 1, 5 and 15 minutes"),
        ("", ""),
        ("machine", f"{cpu.fingerprint} (what records are filed under)"),
        ("files", str(cache_root())),
    ]
    for name, text in lines:
        print(f"{name:<11}{text}".rstrip())
    return 0


_FEATURES = {
    *("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512vl", "avx512bf16", "avx512vnni"),
    *("neon", "fp-armv8", "dotprod", "fullfp16", "sve"),
}


def _peak_text(report: MachineReport) -> str:
    one, all_cores = report.peak / 1e9, report.peak_all / 1e9
    return f"{one:.1f} GFLOP/s on one core, {all_cores:.1f} on {report.cores}"


def _noise_now() -> float:
    readings = sorted(canary() for _ in range(50))
    return readings[45]


def _advice(report: MachineReport) -> str:
    if report.noise < 0.03:
        return "a quiet machine"
    if report.noise < 0.15:
        return "usable; differences of a few per cent need the final race"
    return "noisy: stop other work before you tune, or expect ties"


def tune(arguments: Namespace) -> int:
    """Search for the best schedules of the targets, or say what a policy would use."""
    targets = [read_target(text) for text in arguments.targets]
    if arguments.policy == "heuristic":
        return _print_choices(targets, None, arguments)
    if arguments.policy == "cached":
        with _stored(arguments.db) as database:
            return _print_choices(targets, database, arguments)
    with Database(arguments.db) as database:
        return _profile(targets, database, arguments)


def _profile(targets: Sequence[Target], database: Database, arguments: Namespace) -> int:
    """Tune, and show what has come of it."""
    from tuner.display import Board
    from tuner.fastrun import Budget, fast_run

    peak = probe().peak_of(arguments.threads)
    problems = merged(targets)
    limit = arguments.seconds
    if limit is None and arguments.trials is None:
        limit = SECONDS_PER_PROBLEM * len(problems)
    budget = Budget(limit, arguments.trials)
    names = ", ".join(target.name for target in targets)
    title = (
        f"{names}: {plural(len(problems), 'problem')}, {plural(arguments.threads, 'thread')}, "
        f"{arguments.regime}, {_budget_text(budget.seconds, budget.trials)}"
    )
    console = screen()
    with Board(console, title, budget) as board:
        summary = fast_run(
            problems,
            database,
            budget,
            threads=arguments.threads,
            regime=arguments.regime,
            seed=arguments.seed,
            algorithms=arguments.algorithms,
            max_error=math.inf if arguments.max_error is None else arguments.max_error,
            observe=board,
        )
    machine = Cpu.host().fingerprint
    found = standings(
        database,
        problems,
        machine,
        arguments.threads,
        arguments.regime,
        max_error=arguments.max_error,
    )
    standings_table(console, found, peak)
    for target in targets:
        if target.is_network:
            network_sums(console, target, found)
    rate = summary.trials / summary.seconds if summary.seconds else 0.0
    print(
        f"{plural(summary.trials, 'trial')} in {duration(summary.seconds)} ({rate:.1f}/s), "
        f"{summary.known} known before; stored in {database.name}"
    )
    if summary.interrupted:
        print("interrupted: the same command goes on where this one stopped")
        return INTERRUPTED
    return 0


def _budget_text(limit: float | None, trials: int | None) -> str:
    parts = [] if limit is None else [f"{limit:.0f} s"]
    parts += [] if trials is None else [f"{trials} trials each"]
    return ", ".join(parts)


def best(arguments: Namespace) -> int:
    """Print the best known schedules of a target."""
    target = read_target(arguments.target)
    with _stored(arguments.db) as database:
        return _print_choices([target], database, arguments)


def _print_choices(
    targets: Sequence[Target], database: Database | None, arguments: Namespace
) -> int:
    """What would run: the best measured schedule, else what the heuristic says."""
    cpu, problems = Cpu.host(), merged(targets)
    if database is None:
        found = [Standing(p, count, None, None, None) for p, count in problems]
    else:
        found = standings(
            database,
            problems,
            cpu.fingerprint,
            arguments.threads,
            arguments.regime,
            max_error=arguments.max_error,
        )
    if getattr(arguments, "json", False):
        print(json.dumps(_choices_document(targets[0], found, arguments, cpu), indent=1))
        return 0
    rows = [
        (
            *(str(s.problem), str(s.count), _choice(s, cpu)),
            *("measured" if s.best else "heuristic", ms(seconds(s.best))),
            f"{s.gflops:.1f}" if s.best else UNKNOWN,
        )
        for s in found
    ]
    grid(screen(), ("problem", "n>", "schedule", "from", "ms>", "GFLOP/s>"), rows)
    missing = sum(s.best is None for s in found)
    if missing and database is not None:
        print(
            f"{missing} of {plural(len(found), 'problem')} not measured with "
            f"{plural(arguments.threads, 'thread')}, {arguments.regime}: `fastrun tune` does that"
        )
    return 0


def _choice(s: Standing, cpu: Cpu) -> str:
    if s.best:
        return s.best.schedule
    template, schedule = heuristic_choice(s.problem, cpu)
    return template.text(schedule)


def _choices_document(
    target: Target, found: Sequence[Standing], arguments: Namespace, cpu: Cpu
) -> dict[str, Any]:
    """JSON form of what would run; times in seconds, null is what nobody measured."""
    naive, heuristic, total = network_seconds(found)
    return {
        "target": target.name,
        "machine": cpu.fingerprint,
        "threads": arguments.threads,
        "regime": arguments.regime,
        "naive": _finite(naive),
        "heuristic": _finite(heuristic),
        "best": _finite(total),
        "problems": [
            {
                "problem": str(s.problem),
                "count": s.count,
                "schedule": _choice(s, cpu),
                "from": "measured" if s.best else "heuristic",
                "verdict": s.verdict,
                "naive": _finite(seconds(s.naive)),
                "heuristic": _finite(seconds(s.heuristic)),
                "best": _finite(seconds(s.best)),
                "gflops": _finite(s.gflops),
                "error": s.best.errors.to_dict() if s.best and s.best.errors else None,
                "workspace": s.best.workspace if s.best else None,
            }
            for s in found
        ],
    }


def _finite(value: float) -> float | None:
    return value if value == value else None


def show(arguments: Namespace) -> int:
    """Take a kernel apart, or list a network's problems."""
    target = read_target(arguments.target)
    if target.is_network:
        return _show_network(target)
    from tuner.show import Kernel, algorithm_lines, kernel_lines, problem_lines

    problem, cpu = target.problems[0][0], Cpu.host()
    with _stored(arguments.db) as database:
        where = (problem, cpu.fingerprint, arguments.threads, arguments.regime)
        ranking = database.ranking(*where, include_baselines=True)
    template, schedule, source = _pick(problem, arguments, ranking, cpu)
    kernel = Kernel.of(problem, template, schedule, cpu)
    if arguments.ir or arguments.asm:
        print(kernel.program.ir if arguments.ir else compile_assembly(kernel.program.ir, cpu))
        return 0
    text = template.text(schedule)
    record = next((r for r in ranking if r.ir_hash == kernel.program.ir_hash), None)
    if arguments.measure:
        from tuner.remeasure import remeasure

        record = remeasure(problem, text, arguments.threads, arguments.regime)
    print("\n".join(problem_lines(problem)))
    if arguments.algorithm is None and arguments.schedule is None:
        print("\nalgorithms, as they would run unmeasured")
        print("\n".join(algorithm_lines(problem, cpu)))
    peak = probe().peak_of(arguments.threads)
    print("\n" + "\n".join(kernel_lines(kernel, source, record, peak)))
    return 0


def _pick(
    problem: ConvProblem, arguments: Namespace, ranking: Sequence[Record], cpu: Cpu
) -> tuple[KernelTemplate, Any, str]:
    """The kernel that `show` is asked for, and where its schedule is from."""
    name = arguments.algorithm
    if name is not None and name not in templates():
        raise ScheduleError(f"no algorithm {name!r}: there are {', '.join(templates())}")
    if arguments.schedule is not None:
        template, schedule = parse_schedule(arguments.schedule)
        if name not in (None, template.name):
            raise ScheduleError(f"{arguments.schedule!r} is no schedule of {name}")
        return template, schedule, "given"
    if name is not None and (reason := templates()[name].why_not(problem, cpu)):
        raise ScheduleError(f"{name} cannot do {problem}: {reason}")
    for record in ranking:
        if record.algorithm == name or (name is None and not record.baseline):
            return *parse_schedule(record.schedule), "best measured"
    if name is not None:
        return templates()[name], templates()[name].heuristic(problem, cpu), "its heuristic"
    return *heuristic_choice(problem, cpu), "heuristic"


def _show_network(target: Target) -> int:
    total = sum(count * p.macs for p, count in target.problems)
    rows = [
        (str(p), str(count), significant(p.macs / 1e6), percent(count * p.macs / total))
        for p, count in target.problems
    ]
    grid(screen(), ("problem", "n>", "MMAC>", "of all>"), rows)
    number = sum(count for _, count in target.problems)
    print(
        f"{target.name}: {plural(number, 'convolution')}, {len(rows)} distinct, "
        f"{significant(total / 1e6)} million multiply-adds"
    )
    return 0


def report(arguments: Namespace) -> int:
    """Write the report."""
    targets = [read_target(text) for text in arguments.targets]
    with _stored(arguments.db) as database:
        return _write_report(targets, database, arguments, arguments.out)


def _write_report(
    targets: Sequence[Target], database: Database, arguments: Namespace, out: Path | None
) -> int:
    from tuner.report import write_report

    page = write_report(
        database, targets, out, probe(), threads=arguments.threads, regime=arguments.regime
    )
    print(f"report: {page}")
    return 0


def demo(arguments: Namespace) -> int:
    """Tune ResNet-18 and report."""
    targets = [read_target("resnet18")]
    if arguments.seconds is None and arguments.trials is None:
        arguments.seconds = DEMO_SECONDS
    arguments.seed, arguments.algorithms = 0, ()
    with Database(arguments.db) as database:
        code = _profile(targets, database, arguments)
        return code or _write_report(targets, database, arguments, None)


def db_info(arguments: Namespace) -> int:
    """Say what the database holds."""
    with _stored(arguments.db) as database:
        info = database.info()
    state = ", read-only" if info.read_only else ""
    print(f"{info.name} (schema {info.schema}{state})")
    print(
        f"  {plural(info.records, 'record')} of {plural(info.problems, 'problem')} on "
        f"{plural(info.machines, 'machine')}, from {plural(info.runs, 'run')}"
    )
    for outcome, count in sorted(info.outcomes.items()):
        print(f"  {count:>8} {outcome}")
    if info.first and info.last:
        print(f"  from {info.first[:16]} to {info.last[:16]} UTC")
    return 0


def db_merge(arguments: Namespace) -> int:
    """Add another database's records."""
    with Database(arguments.db) as database:
        count = database.merge(arguments.path)
        print(f"{plural(count, 'new record')} in {database.name}")
    return 0


def db_export(arguments: Namespace) -> int:
    """Write the records to a file whose name says the format."""
    suffix = Path(arguments.path.removesuffix(".gz")).suffix
    forms = {".json": "t4", ".csv": "csv", ".jsonl": "jsonl"}
    if suffix not in forms:
        raise DatabaseError(
            f"no format for {arguments.path}: end its name in .json (T4), .csv or .jsonl, or "
            "one of these and .gz"
        )
    with _stored(arguments.db) as database:
        count = database.export(arguments.path, forms[suffix])
    print(f"{plural(count, 'record')} in {arguments.path}")
    return 0


def db_import(arguments: Namespace) -> int:
    """Add the records of a JSON lines file."""
    with Database(arguments.db) as database:
        count = database.import_jsonl(arguments.path)
        print(f"{plural(count, 'new record')} in {database.name}")
    return 0


def _stored(url: str | None) -> Database:
    """The database to look into: an empty one if it is the default's and nothing was tuned."""
    if url is None and not os.path.exists(cache_root() / "fastrun.db"):
        return Database("sqlite://")
    return Database(url, read_only=True)
