"""What a report says: a summary, and sections of sentences, figures and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernels.core.problem import ConvProblem
from tuner import look, plots
from tuner.environment import Environment
from tuner.frames import algorithms_frame, convergence_frame, outcomes_frame, pareto_frame
from tuner.machine import MachineReport
from tuner.noise import NOISY, noise_of
from tuner.record import Record
from tuner.standing import Standing, network_seconds, seconds
from tuner.targets import Target
from tuner.units import UNKNOWN, ms, percent, plural, ratio, significant, size

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """Heads and rows of text. A head that ends in `>` is of a column of numbers."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A part of the report; `name` is that of its files."""

    name: str
    title: str
    text: str
    figure: look.Figure | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Facts:
    """All that the report is made from."""

    machine: MachineReport
    environments: list[Environment]
    targets: Sequence[Target]
    threads: int
    regime: str
    found: list[Standing]
    records: list[Record]
    decisive: list[Record]
    fronts: dict[ConvProblem, list[Record]]

    @property
    def peak(self) -> float:
        """The measured FLOP/s of the threads used."""
        return self.machine.peak_of(self.threads)

    @property
    def options(self) -> str:
        """The options that commands need to speak of the same conditions."""
        parts = [f" --threads {self.threads}"] if self.threads != 1 else []
        return "".join([*parts, *([f" --regime {self.regime}"] if self.regime != "hot" else [])])


def conditions(facts: Facts) -> str:
    first, last = (pick(r.time for r in facts.records)[:16] for pick in (min, max))
    when = first.replace("T", " ") if first[:10] == last[:10] else f"{first[:10]} to {last[:10]}"
    return f"{facts.machine.model}, {plural(facts.threads, 'thread')}, {facts.regime}, {when} UTC"


def tiles(facts: Facts) -> Iterator[tuple[str, str]]:
    """The few figures to remember: a number and what it is."""
    naive, heuristic, best = network_seconds(facts.found)
    if any(t.is_network for t in facts.targets) and best == best:
        yield f"{ms(best)} ms", f"all convolutions; heuristic {ms(heuristic)} ms"
        yield ratio(naive / best), "faster than the naive loop"
        yield ratio(heuristic / best), "faster than the heuristic"
    verdicts = [s.verdict for s in facts.found]
    yield f"{verdicts.count('faster')} of {len(verdicts)}", "layers surely faster by tuning"


def summary(facts: Facts) -> Iterator[str]:
    """What was tuned, how much faster it is, how sure that is, and what did not get faster."""
    trials = sum(r.stage == "screen" for r in facts.records)
    runs = len({r.run for r in facts.records})
    yield (
        f"{plural(len(facts.found), 'distinct convolution')} tuned by "
        f"{plural(trials, 'trial')} in {plural(runs, 'run')}."
    )
    for target in facts.targets:
        counts = dict(target.problems)
        own = [
            Standing(s.problem, counts[s.problem], s.naive, s.heuristic, s.best)
            for s in facts.found
            if s.problem in counts
        ]
        naive, heuristic, best = network_seconds(own)
        if target.is_network:
            yield (
                f"The {sum(counts.values())} convolutions of {target.name} take {ms(best)} ms "
                f"one after the other: {ratio(naive / best)} faster than the naive loop "
                f"({ms(naive)} ms), {ratio(heuristic / best)} faster than the heuristic, which "
                f"chooses without measuring ({ms(heuristic)} ms)."
            )
    final = [s for s in facts.found if s.best and s.best.stage == "final"]
    if final:
        fewest = min(len(s.best.samples) for s in final if s.best)
        yield (
            f"How sure: {len(final)} of {len(facts.found)} winners raced the heuristic in "
            f"interleaved rounds, {fewest} samples each at least, and what the race measured is "
            "what is shown. A layer counts as faster only if the 95 % interval of its speed-up "
            "clears 3 %."
        )
    slow = {
        "tie": "Not surely faster than the heuristic",
        "heuristic": "Left as the heuristic had them",
        "unsure": "Measured too little to say",
        "not measured": "Not measured",
    }
    for verdict, words in slow.items():
        named = [str(s.problem) for s in facts.found if s.verdict == verdict]
        if len(named) == len(facts.found):
            yield f"{words}: all layers."
        elif named:
            yield f"{words}: {plural(len(named), 'layer')}. {'; '.join(named)}."
    noise = noise_of(facts.records)
    if noise >= NOISY:
        yield (
            f"This was a noisy machine: by one in ten of the canary's readings, fixed work took "
            f"{percent(noise)} longer than at its best, or more. Small differences are ties here."
        )
    errors = [s.best.errors.max for s in facts.found if s.best and s.best.errors]
    if errors:
        yield (
            "Every result was compared with float64 before it was timed: the largest error of a "
            f"winner is {max(errors):.1e} of the output's root mean square."
        )


def sections(facts: Facts, best: pd.DataFrame) -> Iterator[Section]:
    """The parts of the report in order."""
    yield Section("layers", "Layer by layer", _layers_text(facts), table=_layers_table(facts, best))
    yield Section(
        "over-heuristic",
        "Gain over the heuristic",
        "The heuristic picks an algorithm and a schedule from shapes and cache sizes alone. This "
        "is what measuring adds to that. The grey band is 3 %, within which all is equal.",
        plots.over_heuristic(best),
    )
    yield Section(
        "over-naive",
        "Gain over the naive loop",
        "The naive loop is the definition of convolution, compiled at -O3: seven scalar loops. "
        "Most of this gain is owed to having the right algorithm at all.",
        plots.over_naive(best),
    )
    winograd = "winograd" in set(best["algorithm"])
    yield Section(
        "share-of-peak",
        "Share of peak",
        f"The peak, {facts.peak / 1e9:.1f} GFLOP/s, was measured on this machine by a loop of "
        "nothing but multiply-adds. Bars count the direct method's operations."
        + (" Winograd does fewer, so it may pass the peak." if winograd else ""),
        plots.share_of_peak(best, facts.peak),
    )
    if best["count"].sum() > len(best):
        yield Section(
            "time",
            "Time by layer",
            "All occurrences of a layer together: where the next millisecond could come from.",
            plots.time_per_layer(best),
        )
    yield Section(
        "algorithms",
        "Algorithms compared",
        "The best schedule found of each algorithm. The search gives most trials to the leaders, "
        "so that the far end is known less well.",
        plots.algorithms(algorithms_frame(facts.decisive), best),
    )
    yield Section(
        "roofline",
        "Roofline",
        "A layer's arithmetic per byte, if every tensor moved once, against the measured peak and "
        "the rates at which one core reads from each cache.",
        plots.roofline(best, facts.peak, facts.machine.read_streams),
    )
    fronts = pareto_frame(facts.fronts)
    if len(fronts) > fronts["problem"].nunique():
        yield Section(
            "pareto",
            "Time, workspace, error",
            "Schedules that are slower than the fastest of their layer, but take a tenth less "
            "workspace or err by a tenth less than all that are faster. A line is a layer. "
            "`fastrun best --pareto` lists them.",
            plots.pareto(fronts),
        )
    curves = convergence_frame(facts.records)
    if len(curves):
        yield Section(
            "convergence",
            "The search",
            "The best so far after each trial, as a multiple of the best found.",
            plots.convergence(curves),
        )
    yield from _failures(facts)
    yield Section("schedules", "Winning schedules", "", table=_schedules_table(best))
    yield Section(
        "reproduce",
        "Repeat a row",
        "Each command builds the schedule, verifies it and times it now.",
        table=_reproduce_table(facts, best),
    )
    yield Section("environment", "Where this was measured", "", table=_environment_table(facts))


def _layers_text(facts: Facts) -> str:
    return (
        "Times in ms per call: the quartile of the samples that disturbance leaves alone. "
        f"GFLOP/s count the direct method's operations; the peak is {facts.peak / 1e9:.1f}."
    )


def _layers_table(facts: Facts, best: pd.DataFrame) -> Table:
    heads = (
        *("layer", "n>", "naive ms>", "heuristic ms>", "best ms>", "over naive>"),
        *("over heuristic>", "95 % interval>", "GFLOP/s>", "of peak>", "winner", "verdict"),
    )
    rows = (
        (
            *(label, str(s.count)),
            *(ms(seconds(record)) for record in (s.naive, s.heuristic, s.best)),
            *(ratio(s.over_naive), ratio(s.over_heuristic)),
            "{:.2f} to {:.2f}".format(*s.interval) if s.verdict in ("faster", "tie") else UNKNOWN,
            *(f"{s.gflops:.1f}" if s.best else UNKNOWN, percent(s.gflops * 1e9 / facts.peak)),
            *(s.best.algorithm if s.best else UNKNOWN, s.verdict),
        )
        for label, s in zip(best["layer"], facts.found, strict=True)
    )
    return Table(heads, tuple(rows))


def _failures(facts: Facts) -> Iterator[Section]:
    failed = outcomes_frame(facts.records)
    trials = len(facts.records)
    text = f"{failed['count'].sum()} of {plural(trials, 'recorded outcome')} came to nothing."
    if len(failed):
        text += (
            " A candidate that is refused, crashes, hangs or computes wrongly costs a trial and "
            "nothing else: it runs in a process of its own."
        )
    figure = plots.outcomes(failed) if len(failed) else None
    rows = ((r.outcome, r.reason, str(r.count)) for r in _rows(failed))
    table = Table(("outcome", "reason", "trials>"), tuple(rows)) if len(failed) else None
    yield Section("failures", "Failures", text, figure, table)


def _schedules_table(best: pd.DataFrame) -> Table:
    rows = (
        (row.layer, row.winner, f"{row.error_max:.1e}", size(int(row.workspace)))
        if row.winner
        else (row.layer, UNKNOWN, UNKNOWN, UNKNOWN)
        for row in _rows(best)
    )
    return Table(("layer", "schedule", "error>", "workspace>"), tuple(rows))


def _reproduce_table(facts: Facts, best: pd.DataFrame) -> Table:
    rows = (
        (
            row.layer,
            f"fastrun show '{row.problem}' --schedule '{row.winner}' --measure{facts.options}",
        )
        for row in _rows(best)
        if row.winner
    )
    return Table(("layer", "command"), tuple(rows))


def _environment_table(facts: Facts) -> Table:
    machine = facts.machine
    rates = ", ".join(f"{level} {rate / 1e9:.0f}" for level, rate in machine.read_streams.items())
    rows = [
        ("processor", f"{machine.model}, {plural(machine.cores, 'core')}"),
        ("fingerprint", machine.machine),
        (
            "peak",
            f"{machine.peak / 1e9:.1f} GFLOP/s on one core, {machine.peak_all / 1e9:.1f} on all",
        ),
        ("reading", f"{rates} GB/s, one core"),
        (
            "noise",
            f"{percent(machine.noise)} by the canary when the machine was measured, "
            f"{percent(noise_of(facts.records))} while it tuned",
        ),
    ]
    for environment in facts.environments[-1:]:
        settings = {
            "governor": environment.governor,
            "turbo": environment.turbo,
            "SMT": environment.smt,
        }
        caches = {"L1": environment.l1, "L2": environment.l2, "L3": environment.l3}
        rows += [
            ("caches", ", ".join(f"{level} {size(n)}" for level, n in caches.items() if n)),
            ("memory", size(environment.memory)),
            ("settings", ", ".join(f"{k} {v or 'unknown'}" for k, v in settings.items())),
            ("system", f"{environment.system}, {environment.kernel}"),
            ("versions", ", ".join(f"{k} {v}" for k, v in environment.versions.items() if v)),
        ]
    loads = sorted(e.load[0] for e in facts.environments)
    if loads:
        rows.append(("load", f"{significant(loads[-1])} at most when a run began"))
    toolchains = sorted({r.toolchain for r in facts.records})
    rows.append(("toolchains", "; ".join(toolchains)))
    return Table(("", ""), tuple(rows))


def _rows(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples(index=False))
