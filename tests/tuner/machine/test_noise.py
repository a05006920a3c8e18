"""The noise of a run, as a number and in words."""

from __future__ import annotations

import math

import pytest

from fastrun.tuner.machine import noise
from fastrun.tuner.machine.noise import in_words, noise_of, others
from tests.support.records import record


def test_noise_is_what_one_reading_in_ten_exceeds() -> None:
    readings = [record(mr, noise=0.01 * mr) for mr in range(10)]
    assert noise_of([*readings, record()]) == 0.09
    assert math.isnan(noise_of([record()]))


@pytest.mark.parametrize(
    ("value", "word"), [(0.01, "quiet"), (0.1, "usable"), (0.9, "noisy"), (math.nan, "")]
)
def test_noise_has_words(value: float, word: str) -> None:
    assert in_words(value).partition(":")[0] == word


def test_others_at_work_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "runnable", lambda: 2)
    assert others().startswith("2 other tasks")
    monkeypatch.setattr(noise, "runnable", lambda: 0)
    assert others() == ""


def test_noise_beyond_its_share_is_said_in_words() -> None:
    assert noise.amount(0.12) == "12 %"
    assert noise.amount(52.0) == "so large that fixed work took 53.0x its time"
    assert noise.amount(math.nan) == "unknown"
