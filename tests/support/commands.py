"""What makes commands short in tests: a cache that knows the machine, finals of few processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastrun.tuner.machine.probe import probe, save
from fastrun.tuner.search.budget import RACES


def fresh_cache(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """An empty cache, `folder`, but for the report of this machine, which takes long to measure."""
    report = probe()  # in the tests' own cache, measured once
    patch.setenv("FASTRUN_CACHE", str(folder))
    save(report)
    return folder


def short_finals(patch: pytest.MonkeyPatch) -> None:
    """Finals take the fewest processes that allow a verdict, as where little time is left."""
    shortest = RACES[-1]
    full = tuple(replace(races, final=shortest.final) for races in RACES)
    patch.setattr("fastrun.tuner.search.fastrun.RACES", full)
    patch.setattr("fastrun.tuner.networks.final._PROCESSES", shortest.final.processes)
