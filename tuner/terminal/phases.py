"""Says how far a long run without a board is: which phase, and how much of it is done."""

from __future__ import annotations

import math
import sys
import time

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastrun.tuner.records.units import clock
from fastrun.tuner.terminal.display import HEARTBEAT, screen
from fastrun.tuner.terminal.live import Redrawn


class Phases(Redrawn):
    """A line on the terminal that is redrawn; elsewhere a line for each phase, and now and then.

    It is called with what is being done, how many parts of it are done, and of how many.
    """

    def __init__(self) -> None:
        super().__init__(screen(progress=True))
        self._begin = time.monotonic()
        self._doing, self._shown = "", -math.inf

    def __call__(self, doing: str, done: int, of: int) -> None:
        """Show a phase and how far it is."""
        now = time.monotonic()
        new, since = doing != self._doing, now - self._shown
        if not new and since < (0.1 if self.lively else HEARTBEAT):
            return
        self._doing, self._shown = doing, now
        text = f"{doing} {done + 1} of {of}" if of > 1 else doing
        if not self.lively:
            print(f"[{now - self._begin:6.1f} s] {text}", file=sys.stderr, flush=True)
            return
        line = Table.grid(padding=(0, 2))
        line.add_row(Text(text), ProgressBar(total=of, completed=done, width=24))
        line.add_row(Text(clock(now - self._begin), "dim"))
        self.draw(line)
