"""The sections of a report after its summary: sentences, figures and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastrun.tuner.machine.noise import amount, noise_of
from fastrun.tuner.precision.kept import Front
from fastrun.tuner.records.record import Record
from fastrun.tuner.records.units import (
    UNKNOWN,
    interval,
    ms,
    percent,
    plural,
    ratio,
    significant,
    size,
    span,
)
from fastrun.tuner.report import layer_plots, network_times, plots
from fastrun.tuner.report import style as look
from fastrun.tuner.report.frames import (
    algorithms_frame,
    convergence_frame,
    importance_frame,
    outcomes_frame,
    pareto_frame,
    precision_frame,
    rows,
)
from fastrun.tuner.report.summary import Facts
from fastrun.tuner.store.standing import network_seconds, seconds

if TYPE_CHECKING:
    import pandas as pd


_CHANGED = 0.1  # a clock that differs by more within a record is worth a word

# Why an algorithm may exceed the peak.
_ABOVE = {
    "winograd": "Winograd needs fewer, so it may exceed the peak.",
    "amx": "Products in tile registers (AMX) are several times as fast.",
}


@dataclass(frozen=True)
class Table:
    """Heads and rows of text. A head that ends in `>` marks a column of numbers."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def known(self) -> Table:
        """The table without the columns in which nothing is known."""
        kept = [
            i
            for i in range(len(self.heads))
            if not self.rows or any(row[i] != UNKNOWN for row in self.rows)
        ]
        lines = (tuple(row[i] for i in kept) for row in self.rows)
        return Table(tuple(self.heads[i] for i in kept), tuple(lines))


@dataclass(frozen=True)
class Section:
    """A part of the report; its files have the name `name`.

    A section is as wide as the page if it has no figure, or goes `across`.
    """

    name: str
    title: str
    text: str
    figure: look.Figure | None = None
    table: Table | None = None
    across: bool = False


def sections(facts: Facts, best: pd.DataFrame) -> Iterator[Section]:
    """The parts of the report in order."""
    yield from _networks(facts)
    yield Section("layers", "Layer by layer", _layers_text(facts), table=_layers_table(facts, best))
    yield Section(
        "over-heuristic",
        "Gain over the heuristic",
        "The heuristic chooses an algorithm and a schedule by shapes and cache sizes alone. The "
        "figure shows the gain by measuring. Within the grey band of 3 % there is a tie.",
        layer_plots.over_heuristic(best),
    )
    yield Section(
        "over-naive",
        "Gain over the naive loop",
        "The naive loop is the definition of convolution in seven scalar loops, compiled at -O3. "
        "Most of this gain comes from better algorithms.",
        layer_plots.over_naive(best),
    )
    yield Section(
        "share-of-peak",
        "Share of peak",
        f"The peak, {facts.peak / 1e9:.1f} GFLOP/s, was measured on this machine with a loop that "
        "has only float32 multiply-adds. Bars count the operations of the direct method."
        + "".join(f" {text}" for name, text in _ABOVE.items() if name in set(best["algorithm"])),
        layer_plots.share_of_peak(best, facts.peak),
    )
    if best["count"].sum() > len(best):
        yield Section(
            "time",
            "Time by layer",
            "The times of all occurrences of each layer: where further gains are possible.",
            layer_plots.time_per_layer(best),
        )
    yield Section(
        "algorithms",
        "Algorithms compared",
        "The best schedule of each algorithm. The search gives most trials to fast algorithms, so "
        "the times of slow ones are less certain. One left of 1 has a lower time, but has not been "
        "in a race as decisive as the winner's.",
        plots.algorithms(algorithms_frame(facts.decisive), best),
    )
    yield Section(
        "roofline",
        "Roofline",
        "Each layer's rate over its arithmetic per byte, if every tensor is moved once. The lines "
        "are the measured peak and the rates at which one core reads from each cache.",
        layer_plots.roofline(best, facts.peak, facts.machine.read_streams),
    )
    fronts = pareto_frame(facts.fronts)
    if len(fronts) > fronts["problem"].nunique():
        yield Section(
            "pareto",
            "Time, workspace, error",
            "Schedules that are slower than the fastest of their layer, but need a tenth less "
            "workspace, or have a tenth less error, than each faster one. Each line is a layer. "
            "`fastrun best --pareto` lists them.",
            plots.pareto(fronts),
        )
    curves = convergence_frame(facts.records)
    if len(curves):
        yield Section(
            "convergence",
            "The search",
            "The best time so far after each trial, as a multiple of the best time found.",
            plots.convergence(curves),
        )
    matters = importance_frame(facts.records)
    if len(matters):
        yield Section(
            "importance",
            "Parameter importance",
            "The share of the variance of an algorithm's times on a layer (of their logarithms) "
            "that one parameter explains alone, corrected for chance, averaged over the layers. "
            "The search tries mostly fast schedules, so a parameter with a clear best value may "
            "seem unimportant.",
            plots.importance(matters),
        )
    yield from _failures(facts)
    yield Section(
        "reproduce",
        "Winning schedules, and how to repeat a row",
        "Each command builds the schedule, checks its output, and times it. The error is the "
        "largest one, relative to the output's root mean square.",
        table=_reproduce_table(facts, best),
    )
    yield Section("environment", "Where this was measured", "", table=_environment_table(facts))


def _networks(facts: Facts) -> Iterator[Section]:
    """A table of several networks, and a section for each network as a whole."""
    if len(facts.networks) > 1:
        yield Section(
            "networks",
            "Networks",
            "Sums of their convolutions, each timed alone; the plan that won the final, timed as a "
            "whole network; and the speed of fastrun over that of the best other engine in one "
            "run of `fastrun bench`.",
            table=_networks_table(facts.networks),
        )
    for n, network in enumerate(facts.networks, 1):
        table = network_times.times_frame([network])
        if len(table):
            yield Section(
                f"network-{n}",
                f"{network.title} as a whole",
                network_times.explanation(network),
                network_times.figure(table),
                _network_table(table),
                across=True,
            )
        if network.precision:
            measured = precision_frame(network.precision)
            yield Section(
                f"precision-{n}",
                f"Precision of {network.title}",
                _precision_text(network.precision),
                plots.precision(measured),
                _precision_table(measured),
            )


def _precision_text(front: Front) -> str:
    judged = "right in float32 and wrong here, less the reverse"
    if not front["labelled"]:
        judged = "whose largest output is another one than in float32"
    return (
        "Layers in 8 bits: the line joins the fastest plans for every loss, with the times and "
        "errors that are expected of them. Marks are whole networks as they were measured with "
        f"{plural(front['samples'], 'example')}. Lost is the share of these {judged}. The chosen "
        "network was the fastest within the limit that was given (`--max-loss`)."
    )


def _precision_table(table: pd.DataFrame) -> Table:
    whole = table[table["measured"]]
    first = whole["seconds"].iloc[0]
    lines = (
        (
            *(f"{row.layers:.0f} of {row.of:.0f}" + " (chosen)" * row.chosen, ms(row.seconds)),
            *(ratio(first / row.seconds), percent(row.lost, 1), f"{row.error:.1e}"),
        )
        for row in rows(whole)
    )
    return Table(("layers in 8 bits", "ms>", "over float32>", "lost>", "rms error>"), tuple(lines))


def _networks_table(networks: Sequence[network_times.NetworkTimes]) -> Table:
    """A row for each network."""
    lines = []
    for network in networks:
        naive, heuristic, best = network_seconds(network.layers)
        final, both = network.final, network_times.beside(network)
        lines.append(
            (
                network.title,
                *map(ms, (naive, heuristic, best)),
                *(ratio(naive / best), ratio(heuristic / best)),
                ms(final.seconds(final.kept)) if final else UNKNOWN,
                f"{ratio(both.theirs / both.ours)} {both.engine}" if both else UNKNOWN,
            )
        )
    heads = (
        *("network", "naive ms>", "heuristic ms>", "tuned ms>", "over naive>", "over heuristic>"),
        *("kept plan ms>", "over best engine>"),
    )
    return Table(heads, tuple(lines)).known()


def _network_table(table: pd.DataFrame) -> Table:
    heads = (
        *("what", "ms>", "how it was measured", "over heuristic's plan>", "95 % interval>"),
        "over best other engine>",
    )
    lines = (
        (
            *(row.who + " (kept)" * row.kept, ms(row.seconds)),
            row.source + (f", {plural(row.samples, 'sample')}" if row.samples else ""),
            ratio(row.over_heuristic),
            interval(row.low, row.high),
            ratio(row.over_peer),
        )
        for row in rows(table)
    )
    return Table(heads, tuple(lines)).known()


def _layers_text(facts: Facts) -> str:
    return (
        "Times in ms per call: the lower quartile of the samples, which is least disturbed. "
        "GFLOP/s count the operations of the direct method; "
        f"the peak is {facts.peak / 1e9:.1f}."
    )


def _layers_table(facts: Facts, best: pd.DataFrame) -> Table:
    # The most important columns come first, because a telephone shows only these.
    heads = (
        *("layer", "n>", "best ms>", "over heuristic>", "95 % interval>", "verdict", "winner"),
        "over the next best>",
        *("of peak>", "GFLOP/s>", "heuristic ms>", "naive ms>", "over naive>"),
    )
    lines = (
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
    return Table(heads, tuple(lines)).known()


def _failures(facts: Facts) -> Iterator[Section]:
    failed = outcomes_frame(facts.records)
    trials = len(facts.records)
    text = f"{failed['count'].sum()} of {plural(trials, 'recorded trial')} failed."
    if len(failed):
        text += (
            " A schedule that is refused, crashes, hangs or computes wrongly costs only its "
            "trial, because it runs in a separate process."
        )
    figure = plots.outcomes(failed) if len(failed) else None
    lines = ((r.outcome, r.reason, str(r.count)) for r in rows(failed))
    table = Table(("outcome", "reason", "trials>"), tuple(lines)) if len(failed) else None
    yield Section("failures", "Failures", text, figure, table)


def _reproduce_table(facts: Facts, best: pd.DataFrame) -> Table:
    lines = (
        (
            row.layer,
            f"fastrun show '{row.problem}' --schedule '{row.winner}' --measure{facts.options}",
            f"{row.error_max:.1e}",
            size(int(row.workspace)),
        )
        for row in rows(best)
        if row.winner
    )
    return Table(("layer", "command", "error>", "workspace>"), tuple(lines))


def _clock(records: Sequence[Record]) -> str:
    """The clock beside the samples, and how often it was not the same for all of a record's."""
    known = [r for r in records if r.clocks]
    text = span([clock / 1e3 for r in known for clock in r.clocks], "GHz")
    changed = sum(max(r.clocks) > (1 + _CHANGED) * min(r.clocks) for r in known)
    share = f"{changed} of {plural(len(known), 'record')} by more than {percent(_CHANGED)}"
    return f"{text}; it changed within {share}" if changed else text


def _environment_table(facts: Facts) -> Table:
    machine = facts.machine
    rates = ", ".join(f"{level} {rate / 1e9:.0f}" for level, rate in machine.read_streams.items())
    lines = [
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
        ("clock", _clock(facts.records)),
        (
            "temperature",
            span([t for r in facts.records for t in r.temperatures], "degrees Celsius"),
        ),
    ]
    for environment in facts.environments[-1:]:
        settings = {
            "governor": environment.governor,
            "turbo": environment.turbo,
            "SMT": environment.smt,
        }
        caches = {"L1": environment.l1, "L2": environment.l2, "L3": environment.l3}
        lines += [
            ("caches", ", ".join(f"{level} {size(n)}" for level, n in caches.items() if n)),
            ("memory", size(environment.memory)),
            ("settings", ", ".join(f"{k} {v or 'unknown'}" for k, v in settings.items())),
            ("system", f"{environment.system}, {environment.kernel}"),
            ("versions", ", ".join(f"{k} {v}" for k, v in environment.versions.items() if v)),
        ]
    loads = sorted(e.load[0] for e in facts.environments)
    if loads:
        lines.append(("load", f"{significant(loads[-1])} at most when a run began"))
    toolchains = sorted({r.toolchain for r in facts.records})
    lines.append(("toolchains", "; ".join(toolchains)))
    return Table(("", ""), tuple(lines))
