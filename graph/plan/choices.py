"""Ways to run one convolution, and how fast each should be.

Who knows better, a database of measurements, answers in the same form: the planner asks an
injected function and does not know whom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout, layout_pair, layout_text
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import KernelTemplate
from fastrun.kernels.registry import applicable, heuristic_choice, parse_schedule


@dataclass(frozen=True)
class Choice:
    """A schedule's text, the layouts it reads and writes, and the seconds it should take."""

    schedule: str
    src: Layout
    dst: Layout
    seconds: float


# All that is known for a problem, in any order. What cannot be built is passed over.
Choose = Callable[[ConvProblem], Sequence[Choice]]

# What an unmeasured kernel is believed to reach of a core's arithmetic, and how much slower than
# the preferred algorithm another one is. Nobody should trust these; they only break ties.
_EFFICIENCY, _SECOND_BEST = 0.5, 1.5
_CLOCK = 3e9

# What it costs to read channels in other blocks than the kernel was measured with, at most: input
# is broadcast or transformed, so that its blocks hardly matter.
_OTHER_BLOCKS = 1.05


def heuristic_choices(cpu: Cpu) -> Choose:
    """Every algorithm's own heuristic, in its layout and in NHWC; seconds are rough guesses."""

    def choose(p: ConvProblem) -> list[Choice]:
        preferred, _ = heuristic_choice(p, cpu)
        guess = p.flops / (4 * cpu.lanes * _CLOCK * _EFFICIENCY)
        found = []
        for template in applicable(p, cpu):
            if not template.baseline:
                # A lower rank is worse; the preferred one has the highest.
                behind = preferred.rank(p, cpu) - template.rank(p, cpu)
                factor = _SECOND_BEST ** (behind + (template is not preferred))
                found += _variants(template, p, cpu, guess * factor)
        return found

    return choose


def _variants(template: KernelTemplate, p: ConvProblem, cpu: Cpu, seconds: float) -> list[Choice]:
    schedule = template.heuristic(p, cpu)
    src, dst = layout_pair(schedule.layout)
    found = [Choice(template.text(schedule), src, dst, seconds)]
    if dst.blocked:
        pair = (src if src.name == "NCHW" else Layout("NHWC"), Layout("NHWC"))
        text = template.text(replace(schedule, layout=layout_text(*pair)))
        found.append(Choice(text, *pair, 1.02 * seconds))
    return found


def crossed(p: ConvProblem, choices: Sequence[Choice]) -> list[Choice]:
    """The choices, and each that keeps the block of channels with another block read.

    A tensor of 24 channels is best kept in blocks of 8, one of 96 in blocks of 16: what leads from
    one to the other was measured in neither.
    """
    # In groups, what is read lies across the vector lanes.
    blocked = [c for c in choices if c.src == c.dst and c.src.blocked and p.groups == 1]
    known = {(c.src, c.dst) for c in choices}
    found = list(choices)
    for choice, other in product(blocked, blocked):
        pair = other.src, choice.dst
        if pair not in known:
            template, schedule = parse_schedule(choice.schedule)
            text = template.text(replace(schedule, layout=f"{pair[0]}>{pair[1]}"))
            found.append(Choice(text, *pair, choice.seconds * _OTHER_BLOCKS))
    return found
