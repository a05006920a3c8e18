"""Races of engines as a pandas table, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fastrun.benchmarks import ours
from fastrun.benchmarks.report import EngineRace
from fastrun.tuner.records.statistics import typical


def engines_frame(races: Sequence[EngineRace]) -> pd.DataFrame:
    """A row for every other engine that was timed, by subject and number of threads.

    Columns `subject`, `group`, `threads`, `engine`, `seconds` per call, `ours` (seconds of
    fastrun), `times` (their ratio), and `low` to `high`, the ratios of 80 % of the engine's
    samples.
    """
    rows = []
    for raced in races:
        own = raced.seconds(ours.NAME)
        for entry in raced.entries:
            if entry.engine == ours.NAME or not entry.samples:
                continue
            taken = typical(entry.samples) - entry.seconds
            low, high = np.percentile(entry.samples, [10, 90]) - taken
            rows.append(
                {
                    "subject": raced.subject,
                    "group": raced.group,
                    "threads": raced.threads,
                    "engine": entry.engine,
                    "seconds": entry.seconds,
                    "ours": own,
                    "times": entry.seconds / own,
                    "low": low / own,
                    "high": high / own,
                }
            )
    columns = ["subject", "group", "threads", "engine", "seconds", "ours", "times", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
