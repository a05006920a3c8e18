"""`fastrun demo`: tune ResNet-18 and report."""

from __future__ import annotations

from argparse import Namespace

from fastrun.commands.report import write
from fastrun.commands.tune import profile
from fastrun.tuner.networks.targets import read_target
from fastrun.tuner.store.database import Database

DEMO_SECONDS = 110.0


def run(arguments: Namespace) -> int:
    """Tune ResNet-18 and report."""
    targets = [read_target("resnet18")]
    if arguments.seconds is None and arguments.trials is None:
        arguments.seconds = DEMO_SECONDS
    arguments.seed, arguments.algorithms, arguments.sampler = 0, (), None
    arguments.workers, arguments.objectives, arguments.storage = None, ("time",), None
    with Database(arguments.db) as database:
        code = profile(targets, database, arguments)
        return code or write(targets, database, arguments, None)
