"""Progress of phases, where there is no terminal that can redraw a line."""

from __future__ import annotations

import pytest

from fastrun.tuner.terminal.phases import Phases


def test_each_phase_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Phases() as progress:
        for i in range(50):
            progress("weights rounded, layer", i, 50)
        progress("whole networks timed", 0, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("] ")[2] for line in lines] == [
        "weights rounded, layer 1 of 50",
        "whole networks timed",
    ]
