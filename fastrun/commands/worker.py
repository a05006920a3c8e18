"""`fastrun worker`: measure for a tuner on another machine."""

from __future__ import annotations

from argparse import Namespace

from fastrun.tuner.records.units import plural
from fastrun.tuner.remote.station import Station, serve


def run(arguments: Namespace) -> int:
    """Measure what comes by way of the scheduler until it ends."""

    def tell(station: Station) -> None:
        print(
            f"{station.cpu.model}, machine {station.cpu.fingerprint}: measuring for "
            f"{arguments.address}, {plural(station.threads, 'thread')} to a candidate; "
            "Ctrl-C ends it",
            flush=True,
        )

    try:
        serve(arguments.address, arguments.threads, tell)
    except KeyboardInterrupt:
        print("ended; what was in hand goes to another worker")
        return 0
    print("the scheduler has ended")
    return 0
