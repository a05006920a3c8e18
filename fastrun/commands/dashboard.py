"""Show the studies of a search in the browser, with optuna-dashboard."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import suppress
from pathlib import Path

from fastrun.options import count


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "storage",
        nargs="?",
        type=Path,
        default="optuna.journal",
        metavar="FILE",
        help="the file that `fastrun tune --storage` wrote (default optuna.journal)",
    )
    parser.add_argument(
        "--port", type=_port, default=8080, metavar="N", help="TCP port (default 8080)"
    )


def run(arguments: Namespace) -> int:
    """Serve optuna-dashboard until Ctrl-C."""
    from fastrun.tuner.search.storage import show

    def tell(page: str) -> None:
        print(f"dashboard of {arguments.storage}: {page} (Ctrl-C ends it)", flush=True)

    with suppress(KeyboardInterrupt):
        show(arguments.storage, arguments.port, tell)
    return 0


def _port(text: str) -> int:
    if count(text) > 65535:
        raise ArgumentTypeError(f"{text} is not a port: the largest is 65535")
    return int(text)
