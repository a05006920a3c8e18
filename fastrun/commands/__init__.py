"""The commands of `fastrun`, a file each.

A command's function takes the parsed arguments and returns an exit code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from fastrun.tuner.records.record import Limits


def limits_of(arguments: Namespace) -> Limits:
    """What the options of a command allow schedules."""
    from fastrun.tuner.records.record import Limits

    return Limits(arguments.max_error, arguments.max_workspace)
