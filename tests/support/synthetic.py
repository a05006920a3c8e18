"""Made-up records of a network, for reports to be tested with: no number in here was measured."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import applicable, heuristic_choice
from fastrun.search_spaces.space import space_for
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.network_record import HEURISTIC, IN_PLACE, LAYERS, NetworkRecord
from fastrun.tuner.records.record import Errors, Outcome, Record
from tests.support.records import placed

PEAK = 1e11
"""FLOP/s of the machine that the records pretend to be from."""

GRAPH = "made-up"
"""The digest of the network that the final pretends to be of."""

_FAILURES = (
    (Outcome.CONSTRAINTS, "tile needs too many registers"),
    (Outcome.CORRECTNESS, "an output is off by 0.0031 of their rms; limit 0.0001"),
    (Outcome.TIMEOUT, "stopped after 2.5 s"),
)


def records(
    problems: Sequence[ConvProblem], trials: int = 24, seed: int = 0, run: str = "synthetic"
) -> list[Record]:
    """What a run might leave: baselines, `trials` screened schedules per problem, finals."""
    draw = random.Random(seed)
    return [r for p in problems for r in _of_problem(p, trials, draw, run)]


def final(machine: str) -> NetworkRecord:
    """What a network's final might leave: the plan from layer times won."""
    took = {HEURISTIC: 5e-3, LAYERS: 4e-3, IN_PLACE: 3.9e-3, "all NHWC": 6e-3}
    samples = {x: tuple(t * (1 + n % 5 / 100) for n in range(36)) for x, t in took.items()}
    return NetworkRecord(
        network="made-up", graph=GRAPH, machine=machine, threads=1, limits="", plan="",
        toolchain=toolchain(), ir_hash="0", kept=LAYERS, samples=samples,
    )  # fmt: skip


def bench(machine: str, subject: str) -> dict[str, object]:
    """What `fastrun bench --json` might leave: ours, a peer, one that was not timed."""
    took = {"ours": 4.1e-3, "peer": 7e-3, "broken": None}
    return {
        "machine": {"machine": machine},
        "results": [
            {"subject": subject, "threads": n, "engine": x, "seconds": s, "samples": [s] * 10}
            for x, s in took.items()
            for n in (1, 2)
        ],
    }


def _of_problem(p: ConvProblem, trials: int, draw: random.Random, run: str) -> Iterator[Record]:
    cpu = Cpu.host()
    template, schedule = heuristic_choice(p, cpu)
    heuristic = template.text(schedule)
    yield _record(p, "naive(layout=NCHW)", 2e9, draw, run, samples=1, baseline=True)
    guess = draw.uniform(0.5, 0.8) * PEAK
    yield _record(p, heuristic, guess, draw, run, heuristic=True)
    able = [t for t in applicable(p, cpu) if not t.baseline]
    reach = {t.name: PEAK * draw.uniform(0.4, 0.95) for t in able}
    if "winograd" in reach:
        reach["winograd"] = PEAK * draw.uniform(0.5, 2.2)
    found: dict[str, float] = {heuristic: guess}
    for _ in range(trials):
        t = draw.choice(able)
        space = space_for(t.name, p, cpu)
        point = tuple(draw.randrange(len(values)) for values in space.domains.values())
        text = t.text(space.at(point))
        if text in found:
            continue
        if draw.random() < 0.15:
            outcome, reason = draw.choice(_FAILURES)
            yield _record(p, text, 0, draw, run, outcome=outcome, reason=reason)
            continue
        found[text] = reach[t.name] * draw.uniform(0.4, 1.0)
        yield _record(p, text, found[text], draw, run)
    leaders = sorted(found, key=lambda text: -found[text])[:3]
    for text in dict.fromkeys([*leaders, heuristic]):
        yield _record(
            p, text, found[text], draw, run, samples=20, stage="final", heuristic=text == heuristic
        )


def _record(
    p: ConvProblem,
    schedule: str,
    rate: float,
    draw: random.Random,
    run: str,
    *,
    samples: int = 3,
    stage: str = "screen",
    outcome: Outcome = Outcome.CORRECT,
    reason: str = "",
    baseline: bool = False,
    heuristic: bool = False,
) -> Record:
    correct = outcome == Outcome.CORRECT
    took = [p.flops / rate * draw.uniform(1.0, 1.04) for _ in range(samples)] if correct else ()
    return Record(
        problem=str(p),
        schedule=schedule,
        machine=Cpu.host().fingerprint,
        threads=1,
        regime="hot",
        toolchain=toolchain(),
        ir_hash=f"made up {schedule}",
        outcome=outcome,
        reason=reason,
        stage=stage,
        samples=tuple(took),
        **(placed(len(took), 5) if stage == "final" else {}),
        errors=Errors(draw.uniform(1e-7, 5e-6), 1e-7, 1e-9) if correct else None,
        workspace=draw.randrange(0, 1 << 20, 64),
        baseline=baseline,
        heuristic=heuristic,
        run=run,
    )


def precisions() -> dict[str, object]:
    """What a search for a network's precision might leave: the third of four was chosen."""
    found = [
        (0.0, 4e-3, 0.0, 0),
        (2e-4, 3e-3, 0.001, 9),
        (1e-3, 2e-3, 0.004, 17),
        (4e-3, 1.8e-3, 0.03, 21),
    ]
    return {
        "network": "made-up",
        "samples": 1000,
        "labelled": True,
        "chosen": 2,
        "validated": [
            {
                "expected_loss": loss, "expected_seconds": 0.98 * seconds, "seconds": seconds,
                "lost": lost, "error": 1.1 * loss**0.5, "layers": layers, "of": 21,
            }
            for loss, seconds, lost, layers in found
        ],
        "expected": [{"loss": loss, "seconds": 0.98 * seconds} for loss, seconds, _, _ in found],
    }  # fmt: skip
