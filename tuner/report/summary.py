"""The data of a report, and its first screen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastrun.kernels.core.attention import Problem
from fastrun.tuner.machine.noise import NOISY, noise_of
from fastrun.tuner.machine.probe import MachineReport
from fastrun.tuner.networks.targets import Target
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.record import Conditions, Record, Stage
from fastrun.tuner.records.units import ms, plural, ratio
from fastrun.tuner.report.network_times import NetworkTimes, beside
from fastrun.tuner.store.standing import Standing, network_seconds, of_network

IDLE = "not searched", "not measured"
"""Verdicts on layers that were not tuned."""

_NAMED = 3  # layers that a sentence names, at most; the table has all


@dataclass(frozen=True)
class Facts:
    """The data of a report."""

    machine: MachineReport
    environments: list[Environment]
    targets: Sequence[Target]
    conditions: Conditions
    found: list[Standing]
    records: list[Record]
    decisive: list[Record]
    fronts: dict[Problem, list[Record]]
    networks: Sequence[NetworkTimes]

    @property
    def peak(self) -> float:
        """The measured FLOP/s of the threads used."""
        return self.machine.peak_of(self.conditions.threads)

    @property
    def options(self) -> str:
        """The options with which commands use the same conditions."""
        threads, regime = self.conditions.threads, self.conditions.regime
        options = "" if threads == 1 else f" --threads {threads}"
        return options if regime == "hot" else f"{options} --regime {regime}"


def where_and_when(facts: Facts) -> str:
    """The machine, conditions and time of the measurements, in one line."""
    first, last = (pick(r.time for r in facts.records)[:16] for pick in (min, max))
    when = first.replace("T", " ") if first[:10] == last[:10] else f"{first[:10]} to {last[:10]}"
    threads, regime = plural(facts.conditions.threads, "thread"), facts.conditions.regime
    return f"{facts.machine.model}, {threads}, {regime}, {when} UTC"


def tiles(facts: Facts) -> Iterator[tuple[str, str]]:
    """The main results: each a number and its meaning."""
    naive, heuristic, best = network_seconds(facts.found)
    if any(t.is_network for t in facts.targets) and best == best:
        known = f"; heuristic {ms(heuristic)} ms" if heuristic == heuristic else ""
        yield f"{ms(best)} ms", f"all convolutions{known}"
        if naive == naive:
            yield ratio(naive / best), "faster than the naive loop"
        if heuristic == heuristic:
            yield ratio(heuristic / best), "faster than the heuristic"
    for network in facts.networks[:1]:
        if both := beside(network):
            words = f"the speed of {both.engine}, the best other engine, on {network.title}"
            yield ratio(both.theirs / both.ours), words
    verdicts = [s.verdict for s in facts.found if s.verdict not in IDLE]
    which = "layers" if len(verdicts) == len(facts.found) else "searched layers"
    if verdicts:
        yield f"{verdicts.count('faster')} of {len(verdicts)}", f"{which} surely faster by tuning"


def summary(facts: Facts, labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What was tuned, the speed-ups, what did not get faster, and how certain that is.

    Each part is a short title and sentences. `labels` are the names of the problems of `found`.
    """
    labels = [label.replace(" ", "\u00a0") for label in labels]
    trials = sum(r.stage == Stage.SCREEN for r in facts.records)
    runs = len({r.run for r in facts.records})
    searched = sum(s.verdict not in IDLE for s in facts.found)
    left = f", {len(facts.found) - searched} not" if searched < len(facts.found) else ""
    yield (
        "Tuned",
        f"{plural(searched, 'distinct convolution')}{left}, by {plural(trials, 'trial')} "
        f"in {plural(runs, 'run')}.",
    )
    faster = " ".join([*_networks(facts), *_layers(facts, labels)])
    if faster:
        yield "How much faster", faster
    slow = " ".join(_not_faster(facts, labels))
    yield "What did not get faster", slow or "Nothing: every layer got faster."
    yield from _certainty(facts)
    errors = [s.best.errors.max for s in facts.found if s.best and s.best.errors]
    if errors:
        yield (
            "Verified",
            "Every result was compared with float64 before it was timed: the largest error of a "
            f"winner is {max(errors):.1e} of the output's root mean square.",
        )


def _networks(facts: Facts) -> Iterator[str]:
    """A sentence about all convolutions of the first network that was measured whole.

    The table of networks has the others. Those that lack measurements are named.
    """
    explained = False
    for target in (target for target in facts.targets if target.is_network):
        own = of_network(facts.found, target.problems)
        count = sum(s.count for s in own)
        naive, heuristic, best = network_seconds(own)
        lacking = sum(not (s.best and s.heuristic) for s in own)
        if lacking:
            yield (
                f"{lacking} of {plural(len(own), 'problem')} of {target.name} "
                "have no measurement of today's kernels: "
                f"`fastrun tune {target.name}` makes them."
            )
        elif not explained:
            explained = True
            slowest = f"{ratio(naive / best)} faster than the naive loop, "
            yield (
                f"The {plural(count, 'convolution')} of {target.title_of_file} take {ms(best)} ms "
                f"one after the other: {slowest if naive == naive else ''}"
                f"{ratio(heuristic / best)} faster than the heuristic, which "
                "chooses without measuring."
            )
        if slow := sum(s.naive is None for s in own):
            yield f"The naive loop of {slow} of {plural(len(own), 'problem')} was not measured."


def _layers(facts: Facts, labels: Sequence[str]) -> Iterator[str]:
    """The gains of single layers over the heuristic."""
    gains = {
        label: s.over_heuristic
        for label, s in zip(labels, facts.found, strict=True)
        if math.isfinite(s.over_heuristic) and s.verdict not in IDLE
    }
    if len(gains) > 1:
        most = max(gains, key=gains.__getitem__)
        mean = math.exp(statistics.fmean(math.log(gain) for gain in gains.values()))
        yield (
            f"The {len(gains)} searched layers gain {ratio(mean)} over the heuristic in the "
            f"geometric mean, at most {ratio(gains[most])} ({most})."
        )


def _not_faster(facts: Facts, labels: Sequence[str]) -> Iterator[str]:
    """A sentence for each reason why layers do not count as faster than the heuristic."""
    slow: Mapping[str, str] = {
        "tie": "Not surely faster than the heuristic",
        "heuristic": "The heuristic's schedule is the best",
        "slower": "Surely slower than the heuristic's schedule when measured again",
        "unsure": "Measured in too few processes for a verdict",
        "not searched": "Not searched (only the heuristic's schedule was measured)",
        "not measured": "Not measured",
    }
    for verdict, words in slow.items():
        named = [
            label for label, s in zip(labels, facts.found, strict=True) if s.verdict == verdict
        ]
        if len(named) == len(facts.found):
            yield f"{words}: all layers."
        elif named:
            shown, more = named[:_NAMED], len(named) - _NAMED
            shown += [f"and {more} more"] if more > 0 else []
            yield f"{words}: {plural(len(named), 'layer')}, {'; '.join(shown)}."


def _certainty(facts: Facts) -> Iterator[tuple[str, str]]:
    winners = [s for s in facts.found if s.best]
    raced = [s.best for s in winners if s.best and s.raced]
    said = []
    if raced:
        own = sum(best.heuristic for best in raced)
        processes = min(len(best.by_process()) for best in raced)
        samples = min(len(best.samples) for best in raced)
        which = f", {own} of them the heuristic's own schedule" if own else ""
        said.append(
            f"{len(raced)} of {plural(len(winners), 'winner')}{which} raced the heuristic's "
            f"schedule or the next best in interleaved rounds, with at least "
            f"{plural(samples, 'sample')} each from at least {processes} processes."
        )
    if others := len(winners) - len(raced):
        said.append(f"{others} of {plural(len(winners), 'winner')} did not race.")
    said.append(
        "A layer counts as faster only if the 95 % interval of its speed-up, over processes, "
        "lies above 3 %."
    )
    yield "How sure", " ".join(said)
    noise = noise_of(facts.records)
    if noise >= NOISY:
        yield (
            "A noisy machine",
            f"In one of ten readings of the canary, fixed work took {ratio(1 + noise)} its best "
            "time or more. So small differences count as ties here.",
        )
