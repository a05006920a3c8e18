"""The measuring protocol: calibrated blocks of calls, early abort, interleaved rounds.

All functions return raw samples. A sample is the seconds per call of one block of calls that ran
back to back in native code. Statistics are made elsewhere (`tuner.records.statistics`).
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.measure.climate import Climate, climate
from fastrun.tuner.records.statistics import rounds_interval, typical

_Number = TypeVar("_Number", int, float)

# Runs a kernel so many times in native code and returns the seconds of all calls together.
Calls = Callable[[int], float]


# A block is repeated if it was disturbed for a larger share of it than this.
_DISTURBED = 0.02
_TRIES = 3  # of a block, at most


@dataclass(frozen=True)
class Protocol:
    """How a kernel is timed; times are in seconds.

    The defaults are those of a screening. A reliable comparison needs interleaved rounds.
    """

    block: float = 1e-3  # a block lasts at least this long, 40 000 ticks of the clock
    warmup: int = 1  # blocks that are discarded; calibration is one of them
    blocks: int = 3  # blocks that are kept
    give_up: float = 2.5  # stop when the best block takes this many times the incumbent's time
    slow: float = 0.05  # if the first call takes this long, no other follows
    # Part of a block that is run before each block of a race, because others have used the caches.
    rewarm: float = 0.25

    def __str__(self) -> str:
        return f"{self.blocks} blocks of {1e3 * self.block:g} ms after {self.warmup} to warm up"


@dataclass(frozen=True)
class Surroundings:
    """What a process was exposed to until now.

    `waited` are the seconds in which its threads waited for a core, from their start until now;
    zero if the system does not count them.
    """

    waited: float = 0.0
    climate: Climate = field(default_factory=Climate)


Look = Callable[[], Surroundings]
"""Tells the surroundings of the process that runs a kernel."""


@dataclass(frozen=True)
class Block:
    """Seconds per call of one block, and the climate at its end.

    `disturbed` is the share of it in which the process waited for a core, or by which the clock
    changed meanwhile, if that is more.
    """

    seconds: float
    climate: Climate
    disturbed: float = 0.0


@dataclass(frozen=True)
class Timing:
    """The blocks of one kernel, in the order measured; each has `repeats` calls.

    `complete` is False if the kernel was given up as too slow.
    """

    blocks: tuple[Block, ...]
    repeats: int
    complete: bool = True

    @property
    def samples(self) -> tuple[float, ...]:
        """Seconds per call of each block."""
        return tuple(block.seconds for block in self.blocks)

    @property
    def disturbed(self) -> float:
        """The largest share by which a block was disturbed."""
        return max((block.disturbed for block in self.blocks), default=0.0)

    @property
    def clocks(self) -> tuple[int, ...]:
        """The clock at the end of each block in MHz; empty if it is not known of all."""
        return _if_all([block.climate.clock for block in self.blocks])

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperature at the end of each block in degrees Celsius; empty likewise."""
        return _if_all([block.climate.temperature for block in self.blocks])


def _if_all(values: Sequence[_Number | None]) -> tuple[_Number, ...]:
    """The values if all are known, else none."""
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else ()


def here() -> Surroundings:
    """The surroundings of this process."""
    return Surroundings(waited(), climate())


def waited() -> float:
    """Seconds in which threads of this process waited for a core, from their start until now.

    It is zero if the system does not count them.
    """
    total = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended, or the system does not count
            total += int((task / "schedstat").read_text().split()[1])
    return 1e-9 * total


def measure(
    calls: Calls,
    protocol: Protocol,
    first: float,
    incumbent: float = math.inf,
    look: Look | None = None,
) -> Timing:
    """Time one kernel whose first, cold call took `first` seconds.

    It is given up as soon as its best block is more than `protocol.give_up` times as long as
    `incumbent`, the best time so far in seconds per call. `look` is `here`, of the process that
    runs the kernel.
    """
    look = look or here
    if first >= protocol.slow and (first := _again(calls, first)) >= protocol.slow:
        return Timing((Block(first, look().climate),), 1)
    limit = protocol.give_up * incumbent
    repeats, last = calibrate(calls, protocol.block)
    for _ in range(protocol.warmup - 1):
        last = calls(repeats) / repeats
    blocks: list[Block] = []
    for _ in range(protocol.blocks):
        if min([last, *(block.seconds for block in blocks)]) > limit:
            return Timing(tuple(blocks) or (Block(last, look().climate),), repeats, False)
        blocks.append(_undisturbed(calls, repeats, look))
    return Timing(tuple(blocks), repeats)


def _again(calls: Calls, first: float) -> float:
    """The shorter of a slow first call and a second one: the machine may have stood still.

    A call of a second or more was slow by itself.
    """
    return min(first, calls(1)) if first < 1 else first


def calibrate(calls: Calls, block: float) -> tuple[int, float]:
    """The number of calls that last `block` seconds or a little more, and their time per call."""
    repeats, elapsed = 1, calls(1)
    while elapsed < block:
        # Later calls are warmer, hence the margin. The clock cannot resolve times near zero.
        wanted = 1.2 * repeats * block / max(elapsed, 1e-7)
        repeats = max(repeats + 1, math.ceil(min(wanted, 1000 * repeats)))
        elapsed = calls(repeats)
    return repeats, elapsed / repeats


def interleave(
    kernels: Sequence[Calls],
    rounds: int,
    protocol: Protocol,
    seed: int,
    drop_every: int = 0,
    look: Look | None = None,
) -> list[Timing]:
    """Time several kernels against each other: in every round each of them runs one block.

    The order within a round is random. Some calls before every block bring the kernel's data back
    into the caches. Sample i of every kernel is from round i, so that a disturbance meets all
    samples of a round and ratios can be taken in pairs. After every `drop_every` rounds (0: never)
    kernels leave that are surely slower than the fastest. `look` is as for `measure`.
    """
    look = look or here
    order = random.Random(seed)
    repeats = [calibrate(calls, protocol.block)[0] for calls in kernels]
    blocks: list[list[Block]] = [[] for _ in kernels]
    running = list(range(len(kernels)))
    for done in range(1, rounds + 1):
        for i in order.sample(running, len(running)):
            kernels[i](math.ceil(protocol.rewarm * repeats[i]))
            blocks[i].append(_undisturbed(kernels[i], repeats[i], look))
        if running and drop_every and done % drop_every == 0 and done < rounds:
            samples = {i: [block.seconds for block in blocks[i]] for i in running}
            fastest = min(samples.values(), key=typical)
            running = [i for i in running if not _surely_slower(samples[i], fastest)]
    return [
        Timing(tuple(found), n, len(found) == rounds)
        for found, n in zip(blocks, repeats, strict=True)
    ]


def _undisturbed(calls: Calls, repeats: int, look: Look) -> Block:
    """One block; a disturbed one is repeated, twice at most, and the least disturbed one counts."""
    tries = list[Block]()
    for _ in range(_TRIES):
        before = look()
        seconds = calls(repeats)
        after = look()
        waited = (after.waited - before.waited) / seconds
        disturbed = max(waited, after.climate.change(before.climate))
        tries.append(Block(seconds / repeats, after.climate, disturbed))
        if disturbed <= _DISTURBED:
            break
    return min(tries, key=lambda block: (block.disturbed, block.seconds))


def _surely_slower(samples: Sequence[float], fastest: Sequence[float]) -> bool:
    return samples is not fastest and rounds_interval(samples, fastest)[0] > 1


def weight_copies(weight_bytes: int, cpu: Cpu) -> int:
    """The number of copies of the weights that calls take in turn, so that none is cached."""
    cache = max(cpu.usable_l3, cpu.l2, 8 << 20)
    return 1 + math.ceil(2 * cache / max(weight_bytes, 1))
