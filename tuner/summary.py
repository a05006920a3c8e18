"""What a report is made from, and its first screen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kernels.core.problem import ConvProblem
from tuner.environment import Environment
from tuner.machine import MachineReport
from tuner.noise import NOISY, noise_of
from tuner.record import Record
from tuner.side_by_side import Network
from tuner.standing import Standing, network_seconds, of_network
from tuner.targets import Target
from tuner.units import ms, percent, plural, ratio

_NAMED = 6  # layers of a kind; the table below has all


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
    networks: Sequence[Network]

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
    """Where and when it was measured, in one line."""
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


def summary(facts: Facts, labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What was tuned, how much faster it is, what did not get faster, how sure that is.

    Pairs of a few words and the sentences they stand for; `labels` name the problems of `found`.
    """
    labels = [label.replace(" ", "\u00a0") for label in labels]
    trials = sum(r.stage == "screen" for r in facts.records)
    runs = len({r.run for r in facts.records})
    yield (
        "Tuned",
        f"{plural(len(facts.found), 'distinct convolution')} by {plural(trials, 'trial')} "
        f"in {plural(runs, 'run')}.",
    )
    faster = " ".join([*_networks(facts), *_layers(facts, labels)])
    if faster:
        yield "How much faster", faster
    slow = " ".join(_not_faster(facts, labels))
    yield "What did not get faster", slow or "Nothing: every layer did."
    yield from _certainty(facts)
    errors = [s.best.errors.max for s in facts.found if s.best and s.best.errors]
    if errors:
        yield (
            "Verified",
            "Every result was compared with float64 before it was timed: the largest error of a "
            f"winner is {max(errors):.1e} of the output's root mean square.",
        )


def _networks(facts: Facts) -> Iterator[str]:
    """A sentence for each network: all of its convolutions, one after the other.

    The first says what is meant, the others the same in fewer words.
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
                "have no measurement of what the generators write today: "
                f"`fastrun tune {target.name}` makes them."
            )
        elif not explained:
            explained = True
            yield (
                f"The {plural(count, 'convolution')} of {target.name} take {ms(best)} ms "
                f"one after the other: {ratio(naive / best)} faster than the naive loop "
                f"({ms(naive)} ms), {ratio(heuristic / best)} faster than the heuristic, which "
                f"chooses without measuring ({ms(heuristic)} ms)."
            )
        else:
            yield (
                f"The {count} of {target.name}: {ms(best)} ms, {ratio(naive / best)} and "
                f"{ratio(heuristic / best)} faster."
            )


def _layers(facts: Facts, labels: Sequence[str]) -> Iterator[str]:
    """By how much single layers gained over the heuristic."""
    gains = {
        label: s.over_heuristic
        for label, s in zip(labels, facts.found, strict=True)
        if math.isfinite(s.over_heuristic)
    }
    if len(gains) > 1:
        most = max(gains, key=gains.__getitem__)
        mean = math.exp(statistics.fmean(math.log(gain) for gain in gains.values()))
        yield (
            f"Over the heuristic a layer gains {ratio(mean)} in the geometric mean, at most "
            f"{ratio(gains[most])} ({most})."
        )


def _not_faster(facts: Facts, labels: Sequence[str]) -> Iterator[str]:
    """A sentence for each reason why layers do not count as faster than the heuristic."""
    slow: Mapping[str, str] = {
        "tie": "Not surely faster than the heuristic",
        "heuristic": "Left as the heuristic had them",
        "unsure": "Measured too little to say",
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
    final = [s for s in facts.found if s.best and s.best.stage == "final"]
    if final:
        fewest = min(len(s.best.samples) for s in final if s.best)
        yield (
            "How sure",
            f"{len(final)} of {len(facts.found)} winners raced the heuristic in interleaved "
            f"rounds, {fewest} samples each at least, and what the race measured is what is "
            "shown. A layer counts as faster only if the 95 % interval of its speed-up clears 3 %.",
        )
    noise = noise_of(facts.records)
    if noise >= NOISY:
        yield (
            "A noisy machine",
            f"By one in ten of the canary's readings, fixed work took {percent(noise)} longer "
            "than at its best, or more. Small differences are ties here.",
        )
