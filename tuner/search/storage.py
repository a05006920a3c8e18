"""Studies in a journal file of Optuna, and optuna-dashboard showing them while a search runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


class _Journal(JournalFileBackend):
    """Appends by one write, which needs no lock, and does not wait for the disk.

    What counts is in the database; so a trial costs 3 ms, and 44 ms with Optuna's lock and waiting.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add a line for each log."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._path.open("ab", buffering=0) as file:
            file.write(lines.encode())


def journal(path: Path) -> JournalStorage:
    """The studies in a journal file, which is made if there is none.

    Raises:
        OSError: the file cannot be written.
        ConnectionError: it holds something else.
    """
    try:
        return JournalStorage(_Journal(path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConnectionError(f"{path} is no journal of Optuna's studies") from error


def show(path: Path, port: int, tell: Callable[[str], None]) -> None:
    """Serve optuna-dashboard for a journal on this machine only, and `tell` its address.

    Raises:
        ConnectionError: there is no journal.
        OSError: the port is taken.
    """
    from optuna_dashboard import wsgi

    if not path.exists():
        raise ConnectionError(f"no studies in {path}: `fastrun tune --storage {path}` writes them")
    application = wsgi(journal(path))
    try:
        server = make_server("127.0.0.1", port, application, handler_class=_Silent)
    except OSError as error:
        raise OSError(
            f"port {port} cannot be used: {error.strerror}; --port names another"
        ) from error
    with server:
        tell(f"http://127.0.0.1:{port}/")
        server.serve_forever()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page that renews itself asks every few seconds."""
