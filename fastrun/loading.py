"""Load the network that the options of a command name."""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from fastrun.graph.runtime.dynamic import DynamicExecutable
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.zoo import NAMES
from fastrun.options import shapes_of
from fastrun.tuner.networks.load import load
from fastrun.tuner.terminal.prose import say


def loaded(arguments: Namespace) -> Executable:
    """The network for the shapes that are given; warnings are printed to standard error."""
    with remarks():
        return opened(arguments).at()


def opened(arguments: Namespace) -> Executable | DynamicExecutable:
    """The network; for all sizes that its model leaves open and no option gives."""
    if str(arguments.model) in NAMES:
        warnings.warn(
            f"{arguments.model} is built in and has random weights: its times are real, its "
            "results mean nothing",
            stacklevel=2,
        )
    return load(
        arguments.model,
        arguments.threads,
        arguments.db,
        arguments.policy,
        shapes_of(arguments),
        arguments.plan,
        max_error=arguments.max_error,
        max_workspace=arguments.max_workspace,
        max_weights=arguments.max_weights,
    )


@contextmanager
def remarks() -> Iterator[None]:
    """Print the warnings of a block to standard error behind it, each once."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    for remark in dict.fromkeys(str(warning.message) for warning in said):
        say(f"fastrun: {remark}", to=sys.stderr)
