"""Which sampler searches: by name, by import path, as an object, or as a class that makes one."""

from __future__ import annotations

import copy
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from fastrun.search_spaces.untried import Untried
from fastrun.tuner.search.errors import SamplerError
from fastrun.tuner.search.gaussian_process import GaussianProcessSampler
from fastrun.tuner.search.parameters import Parameters
from fastrun.tuner.search.samplers import ListedSampler, LocalSampler, NeighbourSampler

# Random schedules that are measured before TPE models, as many as before the Gaussian process.
_FIRST = 5

SMALL = 64
"""A space with so few points is gone through in random order, whatever name the sampler has."""

Sampler = str | BaseSampler | Callable[..., BaseSampler]
"""What may be said of a sampler; `make_sampler` explains it."""


def _cmaes(seed: int) -> BaseSampler:
    """Covariance matrix adaptation, by a package that Optuna would miss only at the first proposal.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    import_module("cmaes")
    return optuna.samplers.CmaEsSampler(
        seed=seed, with_margin=True, warn_independent_sampling=False
    )


SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "gp": lambda untried: NeighbourSampler(untried, GaussianProcessSampler(untried)),
    "tpe": lambda untried, seed: NeighbourSampler(
        untried, optuna.samplers.TPESampler(seed=seed, n_startup_trials=_FIRST)
    ),
    "random": lambda untried: ListedSampler(untried, untried.shuffled()),
    "exhaustive": lambda untried: ListedSampler(untried, untried.in_order()),
    "local": LocalSampler,
    "cmaes": _cmaes,
}
"""Ways to search, by name."""


def make_sampler(sampler: Sampler, untried: Untried, seed: int) -> BaseSampler:
    """A sampler for one study. It shares no state with the samplers of other studies.

    `sampler` is one of these: a name in `SAMPLERS`; the import path of an object, as
    `package.module:name` or `package.module.name`; a sampler of Optuna, of which each study gets a
    copy with the seed that it has; or a class or function that makes one. It is called with the
    keyword arguments `seed`, `untried` and `search_space` (the values of each parameter, as
    Optuna's GridSampler wants them), as far as its signature has them.

    Raises:
        SamplerError: there is none of that name, or it cannot be made.
        ModuleNotFoundError: the package of a name in `SAMPLERS` is not installed.
    """
    if isinstance(sampler, str) and sampler in SAMPLERS:
        if untried.space.volume <= SMALL:
            return ListedSampler(untried, untried.shuffled())
        return _called(SAMPLERS[sampler], untried, seed)
    found = _imported(sampler) if isinstance(sampler, str) else sampler
    try:
        if isinstance(found, BaseSampler):
            return copy.deepcopy(found)
        made = _called(found, untried, seed)
    except Exception as error:
        raise SamplerError(f"{sampler_name(sampler)} makes no sampler: {error}") from error
    if not isinstance(made, BaseSampler):
        raise SamplerError(f"{sampler_name(sampler)} is no sampler of Optuna, and makes none")
    return made


def sampler_name(sampler: Sampler) -> str:
    """What a sampler is called in tables and in the database."""
    if isinstance(sampler, str):
        return sampler
    return str(getattr(sampler, "__qualname__", type(sampler).__qualname__))


def _called(make: Callable[..., BaseSampler], untried: Untried, seed: int) -> BaseSampler:
    space = untried.space
    values = {name: list(range(len(space.domains[name]))) for name in Parameters(space).free}
    arguments = {"untried": untried, "seed": seed, "search_space": values}
    known = inspect.signature(make).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return make(**{name: x for name, x in arguments.items() if name in known})


def _imported(path: str) -> Any:
    """The object at an import path; modules in the current folder are found too."""
    module, _, name = path.replace(":", ".").rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SamplerError(
            f"no sampler {path!r}: {error}; there are {', '.join(SAMPLERS)}, and import paths such "
            "as optuna.samplers.QMCSampler"
        ) from error
