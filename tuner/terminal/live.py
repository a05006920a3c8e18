"""A part of the terminal that is redrawn while something runs."""

from __future__ import annotations

from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live


class Redrawn:
    """What a context manager shows on a terminal, and removes at the end.

    It is `lively` where text can be replaced: not in files, and not on a dumb terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lively = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self.lively:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.lively:
            self._live.stop()

    def draw(self, picture: RenderableType) -> None:
        """Show this in the place of what was there."""
        self._live.update(picture, refresh=True)
