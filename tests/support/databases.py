"""What tests of databases share."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fastrun.tuner.store.database import DatabaseError


def refused(action: Callable[[], object]) -> str:
    """The message of the refusal, which is one line."""
    with pytest.raises(DatabaseError) as refusal:
        action()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def edit(path: Path, statement: str) -> list[Any]:
    """Change the file behind the database's back, or look into it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()
