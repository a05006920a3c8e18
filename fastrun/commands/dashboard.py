"""`fastrun dashboard`: watch the studies of a search."""

from __future__ import annotations

from argparse import Namespace
from contextlib import suppress

from fastrun.tuner.search.storage import show


def run(arguments: Namespace) -> int:
    """Serve optuna-dashboard until Ctrl-C."""

    def tell(page: str) -> None:
        print(f"dashboard of {arguments.storage}: {page} (Ctrl-C ends it)", flush=True)

    with suppress(KeyboardInterrupt):
        show(arguments.storage, arguments.port, tell)
    return 0
