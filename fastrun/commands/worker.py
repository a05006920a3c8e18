"""Measure trials for `fastrun tune --workers` on another machine."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from fastrun.options import count
from fastrun.tuner.records.units import plural

if TYPE_CHECKING:
    from fastrun.tuner.remote.station import Station


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "address", metavar="URL", help="address of the scheduler, such as tcp://host:8786"
    )
    parser.add_argument(
        "--threads-per-trial",
        dest="threads",
        type=count,
        default=1,
        metavar="T",
        help="number of cores that measure a trial (default 1)",
    )


def run(arguments: Namespace) -> int:
    """Measure what the scheduler sends until it ends."""
    from fastrun.tuner.remote.station import serve

    def tell(station: Station) -> None:
        print(
            f"{station.cpu.model}, machine {station.cpu.fingerprint}: measuring for "
            f"{arguments.address}, {plural(station.threads, 'thread')} per trial; Ctrl-C ends it",
            flush=True,
        )

    try:
        serve(arguments.address, arguments.threads, tell)
    except KeyboardInterrupt:
        print("ended; another worker repeats the current trials")
        return 0
    print("the scheduler has ended")
    return 0
