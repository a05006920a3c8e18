"""The measuring protocol: calibrated blocks of calls, early abort, paired rounds, a canary.

Everything here returns raw samples. A sample is the seconds per call of one block of calls that ran
back to back in native code; what statistic to make of them is the reader's business.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.records.statistics import rounds_interval, typical

# Runs a candidate so many times in native code and returns the seconds for all of them.
Calls = Callable[[int], float]


# A block is repeated, so often in all, while it waits for a core for a larger share of its time.
_TRIES, _WAITED = 3, 0.02


@dataclass(frozen=True)
class Protocol:
    """How a candidate is timed; times in seconds.

    The defaults screen: a verdict that must hold up takes interleaved rounds.
    """

    block: float = 1e-3  # a block lasts at least this long, 40 000 ticks of the clock
    warmup: int = 1  # blocks that are thrown away; calibrating is one of them
    blocks: int = 3  # blocks that are kept
    give_up: float = 2.5  # stop when the best block takes this many times the incumbent's time
    slow: float = 0.05  # a first call that takes this long is the only one
    rewarm: float = 0.25  # of a block, run before each in a race: others have used the caches since

    def __str__(self) -> str:
        return f"{self.blocks} blocks of {1e3 * self.block:g} ms after {self.warmup} to warm up"


@dataclass(frozen=True)
class Timing:
    """Seconds per call of each block, in the order measured; `repeats` calls to a block.

    `complete` is False where the candidate was given up as too slow. `waited` is the largest share
    of a block's time for which the process waited for a core.
    """

    samples: tuple[float, ...]
    repeats: int
    complete: bool = True
    waited: float = 0.0


def measure(calls: Calls, protocol: Protocol, first: float, incumbent: float = math.inf) -> Timing:
    """Time one candidate whose first, cold call took `first` seconds.

    It is given up after any block from which on the best is more than `protocol.give_up` times
    `incumbent`, the seconds per call to beat.
    """
    if first >= protocol.slow:
        return Timing((first,), 1)
    limit = protocol.give_up * incumbent
    repeats, last = calibrate(calls, protocol.block)
    for _ in range(protocol.warmup - 1):
        last = calls(repeats) / repeats
    samples: list[float] = []
    longest = 0.0
    for _ in range(protocol.blocks):
        if min([last, *samples]) > limit:
            return Timing(tuple(samples or [last]), repeats, False, longest)
        share, seconds = _undisturbed(calls, repeats)
        samples.append(seconds)
        longest = max(longest, share)
    return Timing(tuple(samples), repeats, waited=longest)


def calibrate(calls: Calls, block: float) -> tuple[int, float]:
    """Calls that last `block` seconds or a little more, and the seconds per call they took."""
    repeats, elapsed = 1, calls(1)
    while elapsed < block:
        # Later calls are warmer, hence the margin; the clock cannot tell times near zero.
        wanted = 1.2 * repeats * block / max(elapsed, 1e-7)
        repeats = max(repeats + 1, math.ceil(min(wanted, 1000 * repeats)))
        elapsed = calls(repeats)
    return repeats, elapsed / repeats


def interleave(
    candidates: Sequence[Calls], rounds: int, protocol: Protocol, seed: int, rung: int = 0
) -> list[Timing]:
    """Time several candidates against each other: in every round each runs one block.

    The order within a round is random, and every block is preceded by some calls that bring a
    candidate's data back into the caches. Sample i of every candidate is of round i, so that what
    disturbs one round disturbs all of its samples and ratios can be taken in pairs. After every
    `rung` rounds, where that is given, those leave that are surely slower than the fastest.
    """
    order = random.Random(seed)
    repeats = [calibrate(calls, protocol.block)[0] for calls in candidates]
    samples: list[list[float]] = [[] for _ in candidates]
    longest = [0.0 for _ in candidates]
    running = list(range(len(candidates)))
    for done in range(1, rounds + 1):
        for i in order.sample(running, len(running)):
            candidates[i](math.ceil(protocol.rewarm * repeats[i]))
            share, seconds = _undisturbed(candidates[i], repeats[i])
            samples[i].append(seconds)
            longest[i] = max(longest[i], share)
        if running and rung and done % rung == 0 and done < rounds:
            fastest = min((samples[i] for i in running), key=typical)
            running = [i for i in running if not _surely_slower(samples[i], fastest)]
    return [
        Timing(tuple(s), n, len(s) == rounds, share)
        for s, n, share in zip(samples, repeats, longest, strict=True)
    ]


def _undisturbed(calls: Calls, repeats: int) -> tuple[float, float]:
    """A block for which the process did not wait for a core: the share waited, seconds per call.

    A block in between which others ran is repeated, twice at most; the least disturbed counts.
    """
    tries = []
    for _ in range(_TRIES):
        before = waited()
        seconds = calls(repeats)
        share = (waited() - before) / seconds
        tries.append((share, seconds / repeats))
        if share <= _WAITED:
            break
    return min(tries)


def _surely_slower(samples: Sequence[float], fastest: Sequence[float]) -> bool:
    return samples is not fastest and rounds_interval(samples, fastest)[0] > 1


def weight_copies(weight_bytes: int, cpu: Cpu) -> int:
    """Copies of the weights to rotate over so that none is still cached when its turn comes."""
    cache = max(cpu.l3, cpu.l2, 8 << 20)
    return 1 + math.ceil(2 * cache / max(weight_bytes, 1))


def waited() -> float:
    """Seconds that the threads of this process could have run but waited for a core, until now.

    Zero where the system does not count it.
    """
    total = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it ended since it was listed, or nobody counts
            total += int((task / "schedstat").read_text().split()[1])
    return 1e-9 * total
