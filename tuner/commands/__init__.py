"""The commands of `fastrun`, a file each.

A command's function takes the parsed arguments and returns an exit code.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from kernels.codegen.jit import cache_root

if TYPE_CHECKING:
    from argparse import Namespace

    from tuner.database import Database
    from tuner.tables import Bounds


def finite(value: float) -> float | None:
    """A number as JSON can say it: None is what is not known."""
    return value if math.isfinite(value) else None


def limits_of(arguments: Namespace) -> Bounds:
    """What the options of a command allow schedules."""
    return {"max_error": arguments.max_error, "max_workspace": arguments.max_workspace}


def existing(url: str | None) -> Database:
    """The database to look into: an empty one if it is the default's and nothing was tuned."""
    from tuner.database import Database  # not every command needs SQL

    usual = cache_root() / "fastrun.db"
    if url is None and not os.path.exists(usual):
        nothing = Database("sqlite://")
        nothing.name = f"{usual} (not there yet)"
        return nothing
    # One's own is migrated where it is of an older schema, somebody else's left as it is.
    return Database(url, read_only=url is not None)
