"""`fastrun dashboard`: watch mirrored studies."""

from __future__ import annotations

from argparse import Namespace
from contextlib import suppress

from fastrun.tuner.search.mirror import show


def run(arguments: Namespace) -> int:
    """Serve optuna-dashboard until Ctrl-C."""

    def tell(page: str) -> None:
        print(f"dashboard of {arguments.url}: {page} (Ctrl-C ends it)", flush=True)

    with suppress(KeyboardInterrupt):
        show(arguments.url, arguments.port, tell)
    return 0
