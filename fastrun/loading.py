"""Load the network that the options of a command name."""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace

from fastrun.graph.runtime.executable import Executable
from fastrun.tuner.networks.load import load


def loaded(arguments: Namespace) -> Executable:
    """The network; warnings of loading are printed to standard error, each once."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        network = load(
            arguments.model,
            arguments.threads,
            arguments.db,
            arguments.policy,
            dict(arguments.shape),
            arguments.plan,
            max_error=arguments.max_error,
            max_workspace=arguments.max_workspace,
        )
    for remark in dict.fromkeys(str(warning.message) for warning in said):
        print(f"fastrun: {remark}", file=sys.stderr)
    return network
