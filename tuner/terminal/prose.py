"""Sentences on the terminal, broken between words."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TextIO


def say(text: str, indent: int = 0, to: TextIO | None = None) -> None:
    """Print a line, on standard output unless `to` says otherwise.

    A terminal that is too narrow gets several lines, all but the first indented.
    Schedules and commands should be printed as they are, to be copied.
    """
    stream = to or sys.stdout
    if stream.isatty():
        text = textwrap.fill(
            text,
            shutil.get_terminal_size().columns,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    print(text, file=stream)
