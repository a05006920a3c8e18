"""Whether a team of threads does a list of steps, or the caller's thread alone.

Two threads that have the cores they need take little more than half the time of one. If other
programs want the cores too, they may take longer than one: each waits for the other whenever the
system takes the other's core away. Only times tell which is the case.
"""

from __future__ import annotations

from collections import deque
from statistics import median

DISTURBED = 1.25
"""A team is disturbed if it takes so many times as long as when it was quick."""

TRIAL_SECONDS, TRIAL_RUNS = 0.02, 3
"""A trial lasts at least so long."""

SHORTEST, LONGEST = 0.1, 0.8
"""Seconds from one trial to the next. They double as long as trials change nothing."""

# The middle one of so many runs counts. A mean would remember the first run, with cold caches, and
# those beside threads that another engine leaves spinning for a while.
_RECENT = 9

# Growth of the quickest time with every run: a quick run of long ago says little.
_FORGET = 1.0002


class Fallback:
    """Decides before every run by the seconds of the runs so far.

    As long as the team is not disturbed, it does every run. If it is, the caller's thread tries it
    alone. The faster of both goes on, and the other gets a trial now and then.

    `alone` is the decision for the next run.
    """

    def __init__(self) -> None:
        self.alone = False
        self._quick = 0.0
        self._recent = {alone: deque[float](maxlen=_RECENT) for alone in (False, True)}
        self._trial = False
        self._spent, self._runs = 0.0, 0  # seconds and runs since the last change
        self._stay = SHORTEST

    def saw(self, seconds: float, late: bool) -> None:
        """Learn the seconds of a run; `late` says that a thread of the team was late for it."""
        self._spent += seconds
        self._runs += 1
        if not self.alone and not late:
            self._quick = min(seconds, self._quick * _FORGET) if self._quick else seconds
        self._recent[self.alone].append(seconds)
        if self._trial:
            if self._spent >= TRIAL_SECONDS and self._runs >= TRIAL_RUNS:
                self._judge()
        elif self._spent >= self._stay:
            self._spent, self._runs = 0.0, 0
            if self.alone or late or median(self._recent[False]) > DISTURBED * self._quick:
                self.alone, self._trial = not self.alone, True
                self._recent[self.alone].clear()
            else:
                self._stay = SHORTEST

    def _judge(self) -> None:
        """End a trial."""
        better = median(self._recent[self.alone]) < median(self._recent[not self.alone])
        self._stay = SHORTEST if better else min(2 * self._stay, LONGEST)
        self.alone = self.alone == better
        self._trial, self._spent, self._runs = False, 0.0, 0
