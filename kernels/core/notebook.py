"""What a notebook shows of an object: its name and a small table of facts, as HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping

_TABLE = "border-collapse: collapse; margin: .2em 0"
_CELL = "text-align: left; vertical-align: top; padding: .1em .8em .1em 0"


def card(title: str, facts: Mapping[str, object]) -> str:
    """The title above a table with a row for each fact; facts that are None or '' are left out."""
    rows = "".join(
        f'<tr><td style="{_CELL}">{html.escape(name)}</td>'
        f'<td style="{_CELL}">{html.escape(str(fact))}</td></tr>'
        for name, fact in facts.items()
        if fact not in (None, "")
    )
    return f'<code>{html.escape(title)}</code><table style="{_TABLE}">{rows}</table>'
