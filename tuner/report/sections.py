"""What a report says after its summary: sections of sentences, figures and tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastrun.tuner.machine.noise import amount, noise_of
from fastrun.tuner.records.units import (
    UNKNOWN,
    interval,
    ms,
    percent,
    plural,
    ratio,
    significant,
    size,
)
from fastrun.tuner.report import layer_plots, plots
from fastrun.tuner.report import network_times as side_by_side
from fastrun.tuner.report import style as look
from fastrun.tuner.report.frames import (
    algorithms_frame,
    convergence_frame,
    importance_frame,
    outcomes_frame,
    pareto_frame,
)
from fastrun.tuner.report.summary import Facts
from fastrun.tuner.store.standing import seconds

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


def sections(facts: Facts, best: pd.DataFrame) -> Iterator[Section]:
    """The parts of the report in order."""
    yield from _networks(facts)
    yield Section("layers", "Layer by layer", _layers_text(facts), table=_layers_table(facts, best))
    yield Section(
        "over-heuristic",
        "Gain over the heuristic",
        "The heuristic picks an algorithm and a schedule from shapes and cache sizes alone. This "
        "is what measuring adds to that. The grey band is 3 %, within which all is equal.",
        layer_plots.over_heuristic(best),
    )
    yield Section(
        "over-naive",
        "Gain over the naive loop",
        "The naive loop is the definition of convolution, compiled at -O3: seven scalar loops. "
        "Most of this gain is owed to having the right algorithm at all.",
        layer_plots.over_naive(best),
    )
    winograd = "winograd" in set(best["algorithm"])
    yield Section(
        "share-of-peak",
        "Share of peak",
        f"The peak, {facts.peak / 1e9:.1f} GFLOP/s, was measured on this machine by a loop of "
        "nothing but multiply-adds. Bars count the direct method's operations."
        + (" Winograd does fewer, so it may pass the peak." if winograd else ""),
        layer_plots.share_of_peak(best, facts.peak),
    )
    if best["count"].sum() > len(best):
        yield Section(
            "time",
            "Time by layer",
            "All occurrences of a layer together: where the next millisecond could come from.",
            layer_plots.time_per_layer(best),
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
        layer_plots.roofline(best, facts.peak, facts.machine.read_streams),
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
    matters = importance_frame(facts.records)
    if len(matters):
        yield Section(
            "importance",
            "Parameter importance",
            "How much of the variance of an algorithm's times on a layer (of their logarithms) one "
            "parameter explains by itself, corrected for chance, averaged over the layers. The "
            "search looks where it is fast: what it settled early seems to matter little.",
            plots.importance(matters),
        )
    yield from _failures(facts)
    yield Section(
        "reproduce",
        "Winning schedules, and how to repeat a row",
        "Each command builds the schedule, verifies it and times it now. The error is the largest, "
        "over the output's root mean square.",
        table=_reproduce_table(facts, best),
    )
    yield Section("environment", "Where this was measured", "", table=_environment_table(facts))


def _networks(facts: Facts) -> Iterator[Section]:
    """A section for each network as a whole."""
    for n, network in enumerate(facts.networks, 1):
        table = side_by_side.side_by_side([network])
        if len(table):
            yield Section(
                f"network-{n}",
                f"{network.title} as a whole",
                side_by_side.in_words(network),
                side_by_side.figure(table),
                _network_table(table),
            )


def _network_table(table: pd.DataFrame) -> Table:
    heads = ("what", "ms>", "how it was measured", "over heuristic's plan>", "95 % interval>")
    rows = (
        (
            *(row.who + " (kept)" * row.kept, ms(row.seconds)),
            row.source + (f", {plural(row.samples, 'sample')}" if row.samples else ""),
            ratio(row.over_heuristic),
            interval(row.low, row.high),
        )
        for row in _rows(table)
    )
    return Table(heads, tuple(rows))


def _layers_text(facts: Facts) -> str:
    return (
        "Times in ms per call: the quartile of the samples that disturbance leaves alone. "
        f"GFLOP/s count the direct method's operations; the peak is {facts.peak / 1e9:.1f}."
    )


def _layers_table(facts: Facts, best: pd.DataFrame) -> Table:
    # What matters most comes first: a telephone shows little more.
    heads = (
        *("layer", "n>", "best ms>", "over heuristic>", "95 % interval>", "verdict", "winner"),
        "over the next best>",
        *("of peak>", "GFLOP/s>", "heuristic ms>", "naive ms>", "over naive>"),
    )
    rows = (
        (
            *(label, str(s.count), ms(seconds(s.best)), ratio(s.over_heuristic)),
            UNKNOWN if s.verdict in ("heuristic", "not searched") else interval(*s.interval),
            *(s.verdict, s.best.algorithm if s.best else UNKNOWN),
            interval(*s.over_runner_up),
            percent(s.gflops * 1e9 / facts.peak),
            f"{s.gflops:.1f}" if s.best else UNKNOWN,
            *(ms(seconds(s.heuristic)), ms(seconds(s.naive)), ratio(s.over_naive)),
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


def _reproduce_table(facts: Facts, best: pd.DataFrame) -> Table:
    rows = (
        (
            row.layer,
            f"fastrun show '{row.problem}' --schedule '{row.winner}' --measure{facts.options}",
            f"{row.error_max:.1e}",
            size(int(row.workspace)),
        )
        for row in _rows(best)
        if row.winner
    )
    return Table(("layer", "command", "error>", "workspace>"), tuple(rows))


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
            f"{amount(machine.noise)} by the canary when the machine was measured, "
            f"{amount(noise_of(facts.records))} while it tuned",
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
