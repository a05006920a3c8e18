"""A copy of every trial in Optuna's own storage, for optuna-dashboard to show the search live.

A copy to look at and nothing else: no search ever reads it. A study is one algorithm's search for
one problem under one set of conditions.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.search_spaces.space import space_for
from fastrun.tuner.records.record import Outcome, Record
from fastrun.tuner.records.units import plural

if TYPE_CHECKING:
    from fastrun.tuner.search.fastrun import Progress

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Mirror:
    """An observer of `fast_run` that adds each trial of a search to the Optuna storage at `url`.

    A context. It writes in a thread of its own, so that no search waits for it. What is written
    when is the storage's business; if it fails, `error` says why and the rest is left out. `cpu` is
    the one measured.

    Raises:
        ConnectionError: `url` is not that of a storage that can be written.
    """

    def __init__(self, url: str, cpu: Cpu) -> None:
        self.error: str | None = None
        self._cpu = cpu
        self._storage = _storage(url)
        self._studies: dict[str, optuna.Study] = {}
        self._records = queue.SimpleQueue[Record | None]()
        self._thread = threading.Thread(target=self._copy, name="mirror")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._records.put(None)
        self._thread.join()

    def __call__(self, progress: Progress) -> None:
        record = progress.record
        if record is not None and record.screened:
            self._records.put(record)

    def _copy(self) -> None:
        while (record := self._records.get()) is not None:
            if self.error is None:
                try:
                    self._add(record)
                except (OptunaError, SQLAlchemyError) as error:
                    self.error = str(error).splitlines()[0]

    def _add(self, record: Record) -> None:
        params, distributions = self._params(record)
        correct = record.outcome == Outcome.CORRECT
        self._study(record).add_trial(
            create_trial(
                state=TrialState.COMPLETE if correct else TrialState.FAIL,
                # The dashboard prints every digit it is given.
                value=float(f"{1e3 * record.seconds_per_call:.5g}") if correct else None,
                params=params,
                distributions=distributions,
                user_attrs={
                    "schedule": record.schedule,
                    "outcome": str(record.outcome),
                    "reason": record.reason,
                    "run": record.run,
                },
            )
        )

    def _study(self, record: Record) -> optuna.Study:
        name = (
            f"{record.problem}, {record.algorithm}, {plural(record.threads, 'thread')}, "
            f"{record.regime}, {record.machine[:8]}"
        )
        if name not in self._studies:
            study = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(["ms per call"])
            self._studies[name] = study
        return self._studies[name]

    def _params(self, record: Record) -> tuple[dict[str, int | str], dict[str, BaseDistribution]]:
        """The schedule's fields; a word must always be one of the same few for Optuna."""
        domains = space_for(record.algorithm, ConvProblem.parse(record.problem), self._cpu).domains
        params: dict[str, int | str] = {}
        distributions: dict[str, BaseDistribution] = {}
        for name, value in record.parameters.items():
            if type(value) is int:
                known = [x for x in domains.get(name, ()) if type(x) is int]
                params[name] = value
                distributions[name] = IntDistribution(min(*known, value), max(*known, value))
            elif value in domains.get(name, ()):
                params[name] = value
                distributions[name] = CategoricalDistribution(list(domains[name]))
        return params, distributions


def show(url: str, port: int, tell: Callable[[str], None]) -> None:
    """Serve optuna-dashboard for a storage on this machine only, and `tell` where.

    Raises:
        ConnectionError: there is no storage at `url`.
        OSError: the port is taken.
    """
    from optuna_dashboard import wsgi

    file = url.partition("sqlite:///")[2]
    if file and not Path(file).exists():
        raise ConnectionError(f"no Optuna storage at {url}: `fastrun tune --mirror {url}` makes it")
    application = wsgi(_storage(url))
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


def _storage(url: str) -> optuna.storages.BaseStorage:
    try:
        return optuna.storages.RDBStorage(url)
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"no Optuna storage at {url}: {reason}") from error
