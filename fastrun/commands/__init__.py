"""The commands of `fastrun`, a file each.

A command's function takes the parsed arguments and returns an exit code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from fastrun.tuner.store.schema import Bounds


def limits_of(arguments: Namespace) -> Bounds:
    """What the options of a command allow schedules."""
    return {"max_error": arguments.max_error, "max_workspace": arguments.max_workspace}
