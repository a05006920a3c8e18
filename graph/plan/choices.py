"""Which schedules a convolution or attention can choose from, and how many seconds each takes.

The planner gets them from a function of type `Choose`. Here it answers from heuristics; the one in
`tuner.networks.measured_choices` answers from a database of measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from fastrun.kernels.codegen.dot import dots, has
from fastrun.kernels.codegen.matrix_tiles import HALVES, NEEDS
from fastrun.kernels.core.attention import AttentionProblem, Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import Layout, layout_pair, layout_text
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import KernelTemplate
from fastrun.kernels.core.types import Types
from fastrun.kernels.registry import applicable, heuristic_choice, parse_schedule


@dataclass(frozen=True)
class Choice:
    """A schedule's text, the layouts it reads and writes, and the seconds it should take.

    The layouts are orders of axes; their element types are those of the problem. `guessed` says
    that the seconds follow from no measurement of this problem.
    """

    schedule: str
    src: Layout
    dst: Layout
    seconds: float
    guessed: bool = False


# The choices for a problem, in any order. Schedules that cannot be built are passed over later.
Choose = Callable[[Problem], Sequence[Choice]]

# Guesses about kernels that were not measured; they only break ties.
_EFFICIENCY = 0.5  # part of a core's peak that a kernel reaches
_SECOND_BEST = 1.5  # how many times slower the next algorithm in rank is
_PEAK = 4 * 3e9  # operations per second and lane: two fused multiply-adds a cycle, at 3 GHz

# Products of integers in the time of one of float32, by the kind of dot product: as measured on a
# Zen 4 (exact kinds, and those of int16) and a Zen 3 (the others).
_RATES = {
    "vnni": 4.0, "usdot": 4.0, "sdot": 4.0, "vnni16": 2.2, "wd16": 1.6,
    "ubsw8": 2.65, "ubsw4": 2.46, "ubsw2": 2.35, "ubsw1": 1.93, "": 1.6,
}  # fmt: skip

# Time of depthwise layers as a multiple of that of float32: where bytes must be widened it is 1.4
# to 2.3, else 0.5 to 0.7.
_WIDENED, _DEPTHWISE_BYTES = 2.0, 0.6

# Seconds beside those of products: of rounding a vector of results, of a kernel's call, and of a
# byte of weights, which only the third cache keeps from one run to the next (Zen 4).
_ROUNDED, _CALL, _FETCHED = 0.6e-9, 0.25e-6, 1 / 36e9

# Times with weights of 16 bits as multiples of the direct method's in float32, measured on a Zen 4
# (AVX-512). Only read, from beyond L2; products of int16, beside what follows from their number;
# depthwise layers and groups of few channels, which have no kernel.
_FEWER_BYTES, _INT16, _DEPTHWISE_HALVES, _GROUPED_HALVES = 0.9, 1.1, 12.0, 2.4

# The same of products of pairs of bf16 in vectors, where their rate was not measured: of a Zen 4,
# and of an Intel Xeon with AMX, whose units for them are its tiles'.
_PAIRS, _PAIRS_BESIDE_TILES = 0.6, 2.0

# Time with one bit.
_COUNTED = 0.15

# The part of whole blocks up to which a tensor in half blocks is worth a try.
_FILLED = 0.9

# How many times slower a kernel is at most if it reads channels in other blocks than those it was
# measured with. Input is broadcast or transformed, so its blocks hardly matter.
_OTHER_BLOCKS = 1.05


def heuristic_choices(
    cpu: Cpu, max_error: float | None = None, rates: Mapping[str, float] | None = None
) -> Choose:
    """Every algorithm's heuristic schedule, in its layout and in NHWC, with guessed seconds.

    Algorithms without a schedule whose expected error is at most `max_error` are left out. `rates`
    are the operations a second in kinds of dot products, as multiples of those in float32, where
    they were measured.
    """
    pairs = _pairs(cpu, rates or {})

    def choose(p: Problem) -> list[Choice]:
        found, templates = list[Choice](), applicable(p, cpu)
        if all(template.baseline for template in templates):
            return found  # there are no kernels of these types for this processor
        preferred, _ = heuristic_choice(p, cpu)
        guess = p.flops / (_PEAK * cpu.lanes * _EFFICIENCY)
        if isinstance(p, AttentionProblem):
            return [c for t in templates for c in _variants(t, t.heuristic(p, cpu), guess)]
        if p.precision.integer:
            guess = _of_integers(p, preferred, guess, cpu)
        elif p.types:
            schedule = preferred.heuristic_within(p, cpu, max_error) or preferred.heuristic(p, cpu)
            guess *= _of_rounded(p, preferred, schedule, cpu, pairs) / _float32(p, cpu, max_error)
        guess = max(guess, _CALL + p.precision.weights.bytes(p.oc * p.depth) * _FETCHED)
        for template in templates:
            schedule = template.heuristic_within(p, cpu, max_error)
            if schedule is not None and not template.baseline:
                # A lower rank is worse; the preferred one has the highest.
                behind = preferred.rank(p, cpu) - template.rank(p, cpu)
                factor = _SECOND_BEST ** (behind + (template is not preferred))
                found += _variants(template, schedule, guess * factor)
                if template is preferred and cpu.halves and not p.types:
                    found += _in_half_blocks(p, template, schedule, guess, cpu, max_error)
        return found

    return choose


def _of_integers(p: ConvProblem, preferred: KernelTemplate, direct: float, cpu: Cpu) -> float:
    """The expected seconds of a problem of integers, of which the direct method in float32 takes
    `direct`.

    Guesses for float32 are those of the direct method as well. Where Winograd computes it faster,
    layers of quantised networks therefore stay in integers, and their tensors in bytes.
    """
    dot, wide = dots(p.precision, cpu)[0], _padded(p.group_oc, cpu.lanes) / p.group_oc
    if p.group_c == 1:
        if dot.name not in ("vnni", "usdot"):
            return direct * _WIDENED
        return direct * _DEPTHWISE_BYTES * _padded(p.oc, cpu.lanes) / p.oc
    schedule = preferred.heuristic(p, cpu)
    effort = preferred.effort(p, schedule)
    if not hasattr(schedule, "dot"):  # tiles, whose effort is that of bytes
        return direct * effort
    if effort != 1:  # products of int16
        rate = _RATES[dots(Types.pairs(), cpu)[0].name]
    else:
        rate = max(1.0, min(1.0, p.group_c / dot.group) * _RATES.get(dot.name, _RATES[""]))
    products = direct * effort * wide / rate
    return products + p.n * p.oc * p.oh * p.ow * wide * _ROUNDED / cpu.lanes


def _pairs(cpu: Cpu, rates: Mapping[str, float]) -> float:
    """The time of products of pairs of bf16 in vectors, as a multiple of those of float32."""
    if rate := rates.get("bf16"):
        return 1 / rate
    return _PAIRS_BESIDE_TILES if has(cpu, NEEDS[HALVES]) else _PAIRS


def _of_rounded(
    p: ConvProblem, template: KernelTemplate, schedule: Any, cpu: Cpu, pairs: float
) -> float:
    """The expected time with 16 bits or one, as a multiple of the direct method's in float32.

    Products of pairs of bf16 take `pairs` times as long as those of float32.
    """
    effort = template.effort(p, schedule)
    if p.precision.signs:
        return _COUNTED
    if p.precision.as_int16:
        return effort * _INT16
    if p.group_c == 1:
        return _DEPTHWISE_HALVES
    if p.groups > 1:
        effort *= _GROUPED_HALVES
    if getattr(schedule, "dot", ""):
        return effort * pairs
    return effort * (_FEWER_BYTES if F32.bytes(p.oc * p.depth) > cpu.l2 else 1.0)


def _float32(p: ConvProblem, cpu: Cpu, max_error: float | None) -> float:
    """The expected time of the best algorithm in float32, as a multiple of the direct method's."""
    plain = replace(p, types="")
    best, schedule = heuristic_choice(plain, cpu)
    return best.effort(plain, best.heuristic_within(plain, cpu, max_error) or schedule)


def _variants(template: KernelTemplate, schedule: Any, seconds: float) -> list[Choice]:
    src, dst = layout_pair(schedule.layout)
    found = [Choice(template.text(schedule), src, dst, seconds, guessed=True)]
    if dst.blocked:
        pair = (src if src.name == "NCHW" else Layout("NHWC"), Layout("NHWC"))
        text = template.text(replace(schedule, layout=layout_text(*pair)))
        found.append(Choice(text, *pair, 1.02 * seconds, guessed=True))
    return found


def _in_half_blocks(
    p: ConvProblem,
    template: KernelTemplate,
    whole: Any,
    seconds: float,
    cpu: Cpu,
    max_error: float | None,
) -> list[Choice]:
    """Choices that read or write blocks of half a vector, where padding fills much of whole ones.

    `whole` is the schedule in whole blocks. Without groups input is broadcast, so the blocks that
    are written decide how wide vectors are.
    """
    half, found = Layout(f"NCHW{cpu.block // 2}c"), list[Choice]()
    src, dst = layout_pair(whole.layout)
    if not (src.blocked and dst.blocked):
        return found
    if _halved(p.c, cpu) and p.groups == 1:
        text = template.text(replace(whole, layout=layout_text(half, dst)))
        found.append(Choice(text, half, dst, seconds, guessed=True))
    if _halved(p.oc, cpu):
        narrow = template.heuristic_within(p, replace(cpu, lanes=half.blocked), max_error)
        if narrow is not None and narrow.layout == half.name:
            used = _padded(p.oc, half.blocked) / _padded(p.oc, cpu.block)
            for source in (half, src) if p.groups == 1 else (half,):
                text = template.text(replace(narrow, layout=layout_text(source, half)))
                found.append(Choice(text, source, half, used * seconds, guessed=True))
    return found


def _halved(channels: int, cpu: Cpu) -> bool:
    """Whether a tensor is a tenth smaller in blocks of half a vector, as with 24 channels."""
    return _padded(channels, cpu.block // 2) <= _FILLED * _padded(channels, cpu.block)


def _padded(channels: int, block: int) -> int:
    return -(-channels // block) * block


def crossed(p: Problem, choices: Sequence[Choice]) -> list[Choice]:
    """The choices, and those that write a block of channels with each other block that is read.

    A tensor of 24 channels is best kept in blocks of 8 and one of 96 in blocks of 16. The
    convolution from one to the other was measured with one block for both.
    """
    if isinstance(p, AttentionProblem):
        return [*choices]
    # With groups the channels that are read lie across the vector lanes.
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
