"""Heats as a pandas table, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fastrun.benchmarks import ours
from fastrun.benchmarks.report import Heat
from fastrun.tuner.records.statistics import typical


def engines_frame(heats: Sequence[Heat]) -> pd.DataFrame:
    """A row for every engine that was timed beside ours, by subject and number of threads.

    Columns `subject`, `group`, `threads`, `engine`, `seconds` per call, `ours` (our seconds),
    `times` (as long as ours takes), and `low` to `high`, which hold 80 % of the engine's samples
    in the same unit.
    """
    rows = []
    for heat in heats:
        own = heat.seconds(ours.NAME)
        for lap in heat.laps:
            if lap.engine == ours.NAME or not lap.samples:
                continue
            taken = typical(lap.samples) - lap.seconds
            low, high = np.percentile(lap.samples, [10, 90]) - taken
            rows.append(
                {
                    "subject": heat.subject,
                    "group": heat.group,
                    "threads": heat.threads,
                    "engine": lap.engine,
                    "seconds": lap.seconds,
                    "ours": own,
                    "times": lap.seconds / own,
                    "low": low / own,
                    "high": high / own,
                }
            )
    columns = ["subject", "group", "threads", "engine", "seconds", "ours", "times", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
