"""Tune ResNet-18 and write the report: about two minutes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from fastrun.commands.report import write
from fastrun.options import budget, conditions
from fastrun.tuner.networks.targets import read_target
from fastrun.tuning import Tuning

DEMO_SECONDS = 110.0


def options(parser: ArgumentParser) -> None:
    budget(parser)
    conditions(parser)


def run(arguments: Namespace) -> int:
    """Tune ResNet-18 and write the report."""
    from fastrun.tuner.store.database import Database

    targets = [read_target("resnet18")]
    if arguments.seconds is None and arguments.trials is None:
        arguments.seconds = DEMO_SECONDS
    arguments.seed, arguments.algorithms, arguments.sampler = 0, (), None
    arguments.workers = arguments.device = arguments.machine = None
    arguments.quiet = arguments.keep_bits = False
    arguments.objectives, arguments.storage = ("time",), None
    with Database(arguments.db) as database:
        code = Tuning(targets, database, arguments).profile()
        return code or write(targets, database, arguments, None)
