"""Narrow terminals: what cannot be broken stands below its row, sentences break between words."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fastrun.tuner.terminal import prose
from fastrun.tuner.terminal.display import grid

HEADS, LONG = ("problem", "schedule", "ms>"), "direct(layout=NHWC, tile_h=1, tile_w=7, cols=1)"
ROWS = [("conv a", LONG, "1.15"), ("conv b", "", "0.5"), ("conv c", "pool[2]", "2")]


def printed(width: int, terminal: bool) -> list[str]:
    to = io.StringIO()
    console = Console(file=to, width=width, force_terminal=terminal, no_color=True)
    grid(console, HEADS, ROWS, below="schedule")
    lines = to.getvalue().splitlines()
    return [line.replace("\x1b[1m", "").replace("\x1b[0m", "").rstrip() for line in lines]


def test_a_column_stands_below_its_rows_where_the_table_is_too_wide() -> None:
    head, _, *rows = printed(40, terminal=True)
    assert head.split() == ["problem", "ms"]
    assert rows == ["conv a   1.15", f"  {LONG}", "conv b    0.5", "conv c      2", "  pool[2]"]


@pytest.mark.parametrize(("width", "terminal"), [(80, True), (40, False)])
def test_it_stays_in_its_place_in_wide_terminals_and_files(width: int, terminal: bool) -> None:
    head, _, *rows = printed(width, terminal)
    assert head.split() == ["problem", "schedule", "ms"]
    assert [row.split(maxsplit=2)[2] for row in rows[:1]] == [f"{LONG}  1.15"]
    assert len(rows) == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_sentences_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal, file = Terminal(), io.StringIO()
    for to in (terminal, file):
        prose.say("  L2   an input of-a task, /a/path/without/any/space", indent=7, to=to)
    shown = "  L2   an input of-a\n       task,\n       /a/path/without/any/space\n"
    assert terminal.getvalue() == shown
    assert file.getvalue() == "  L2   an input of-a task, /a/path/without/any/space\n"
