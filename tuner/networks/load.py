"""Loads a network: the planner with the measurements of the database.

Without a database, or with stale records, the network runs by the heuristic.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrun.graph.build.steps import Arrangement
from fastrun.graph.core.errors import InputError, ModelFileError
from fastrun.graph.core.model import Array, Graph, Shape
from fastrun.graph.core.problems import convolutions
from fastrun.graph.core.sizes import is_open
from fastrun.graph.core.slow import slow_nodes
from fastrun.graph.frontend.file import (
    SharedModel,
    given_sizes,
    inputs_with_values,
    model_inputs,
    proto_of,
)
from fastrun.graph.networks import find_model, load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import Choose
from fastrun.graph.plan.form import GUESSED, Costs
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import carried_out, follow_plan, make_plan, packed_bytes
from fastrun.graph.runtime.defaults import Defaults
from fastrun.graph.runtime.dynamic import DynamicExecutable
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.runtime.weights import Common
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.rounding import roundings
from fastrun.kernels.native.cache import cache_root
from fastrun.tuner.networks.first_use import verified
from fastrun.tuner.networks.measured_choices import (
    guessed_choices,
    pretuned_choices,
    stored_choices,
)
from fastrun.tuner.networks.output_error import within_outputs
from fastrun.tuner.records.affinity import Threads, check_threads, thread_number
from fastrun.tuner.records.record import Limits
from fastrun.tuner.records.units import plural
from fastrun.tuner.store.pretuned import kind

if TYPE_CHECKING:
    import onnx

    from fastrun.graph.frontend.file import Source
    from fastrun.tuner.store.database import Database

# Seconds to wait for a lock of the database before the heuristic chooses.
_LOCK_SECONDS = 2.0

# Schedules for each pair of layouts, where the planner chooses by the size of weights too.
ALL = 1000

POLICIES = ("cached", "heuristic", "reproducible", "profile")


def load(
    source: Source,
    threads: Threads = 1,
    database: Database | str | Path | None = None,
    policy: str = "cached",
    shapes: Mapping[str, Sequence[int]] | None = None,
    plan: Plan | str | Path | None = None,
    *,
    max_error: float | None = None,
    max_workspace: int | None = None,
    max_weights: int | None = None,
    seconds: float = 60.0,
    kept_shapes: int = 16,
) -> Executable | DynamicExecutable:
    """A built-in network by name, an ONNX file, its bytes or an ONNX model, ready to run.

    `shapes` gives or overrides the shapes of inputs. If sizes stay open after that, the network is
    a `DynamicExecutable`: it takes inputs of any sizes, plans for them when they first come, and
    remembers that for the `kept_shapes` last ones. Otherwise it is an `Executable`, planned here.

    With "auto" there are as many `threads` as cores that this process may use, or fewer if its CPU
    time is limited. The policy decides what runs:

    `cached`: the plan stored in `database` for the network on this machine with this number of
    threads. Without one, the planner uses the measured times of layers, and the heuristic for the
    other layers, or winners that come with the package for this kind of processor
    (`tuner.store.pretuned`). `database` is a Database, path or URL; the default is that of the
    cache folder.
    `heuristic`: the heuristic chooses, and no database is read.
    `reproducible`: as `cached` for one thread, whatever `threads` is. So the result has the same
    bits for all numbers of threads.
    `profile`: if the database has no plan, tune for `seconds` first and store the results; then as
    `cached`.

    If the database is missing, locked, damaged, of a newer schema or stale, the heuristic chooses,
    and one warning says why and what to do.

    The rms error of the outputs, relative to their rms, is at most `max_error`: on normal inputs
    the network is compared with the most exact schedules, and where the errors of layers add up to
    more, each layer gets a lower limit, and a warning says so. Quantised networks are not compared;
    there the limit is that of each layer in float32. `max_workspace` limits the bytes that a
    convolution needs besides its operands. Both are measured values of schedules, or expected ones
    without measurements. Where the limit allows it and a gain is expected, a convolution or dense
    layer rounds its weights to 16 bits: to f16 from 2e-4 on, to bf16 (and its input too, if the
    processor multiplies pairs of bf16) from 2.3e-3 on. From 2e-4 on, Winograd may multiply as
    int16, which gains most at 1e-3.

    The packed weights of the network take at most `max_weights` bytes. Winograd's are a multiple of
    the model's; under the limit, it runs where it gains most time for its bytes. A stored plan with
    more of them is not used.

    With `plan`, a Plan or the path of its file, nothing is chosen. If this machine cannot build a
    part of it, the heuristic chooses for this part, and a warning says so. A plan of another
    machine is first compared with the heuristic's plan on normal inputs, and refused if its outputs
    differ. A plan is for the shapes that it names, so the network's sizes are fixed by it.

    Inputs that are initializers of the model too have its values, and others where a run gives
    them: the network is then loaded again with these.

    Raises:
        GraphError: the model or the plan cannot be used, or no schedule is within the limits.
        ValueError: the policy is unknown, or there is less than one thread, or there are more
            threads than cores that this process may use.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}: use one of {', '.join(POLICIES)}")
    threads = thread_number(threads)
    check_threads(threads)
    if shapes is not None and not isinstance(shapes, Mapping):
        raise InputError(f"shapes are given by the names of inputs: {{name: {shapes!r}}}")
    model, given = find_model(source), dict(shapes or {})
    again = partial(
        _with_values,
        source,
        threads=threads,
        database=database,
        policy=policy,
        shapes=given,
        plan=plan,
        max_error=max_error,
        max_workspace=max_workspace,
        max_weights=max_weights,
        seconds=seconds,
        kept_shapes=kept_shapes,
    )
    proto = proto_of(model)
    known = inputs_with_values(proto)
    defaults = Defaults(known, again) if known else None
    if plan is not None:
        cpu, whole = Cpu.host(), plan if isinstance(plan, Plan) else Plan.load(plan)
        graph = optimise(load_network(model, {**whole.inputs, **given}))
        network, remark = _by_plan(graph, whole, cpu, threads)
        if remark:
            warnings.warn(remark, stacklevel=2)
        network.reload, network.defaults = _Reload.of(source, whole.inputs, threads), defaults
        return network
    loading = _Loading(
        model,
        given,
        threads,
        database,
        policy,
        Limits(max_error, max_workspace, max_weights),
        seconds,
    )
    inputs, unread = model_inputs(proto)
    if any(is_open(sizes) for name, sizes in inputs.items() if name not in given):
        inputs |= {name: tuple(shape) for name, shape in given.items()}
        outputs = {v.name: given_sizes(v) for v in proto.graph.output}
        dynamic = DynamicExecutable(loading, inputs, outputs, unread, kept_shapes)
        dynamic.defaults = defaults
        return dynamic
    network, remark = loading.network({})
    if remark:
        warnings.warn(remark, stacklevel=2)
    network.reload, network.defaults = _Reload.of(source, network.plan.inputs, threads), defaults
    return network


def _with_values(
    source: Source, values: Mapping[str, Array], **options: Any
) -> Executable | DynamicExecutable:
    """The network with these values in the place of the model's, loaded by the same options."""
    model = find_model(source)
    shared = model.weights if isinstance(model, SharedModel) else {}
    return load(SharedModel(proto_of(model), {**shared, **values}), **options)


@dataclass(frozen=True)
class _Reload:
    """Loads a model by a plan. It is pickled with the model in it, as other machines lack the file.

    `stamp` is the size and the time of the file when it was loaded.
    """

    source: Source
    shapes: Mapping[str, Shape]
    threads: int
    stamp: tuple[int, int] | None = None

    @classmethod
    def of(cls, source: Source, shapes: Mapping[str, Shape], threads: int) -> _Reload:
        """What loads a network again; `source` is what it was loaded from."""
        if isinstance(source, str | Path) and Path(source).exists():
            source = Path(source).absolute()
            return cls(source, shapes, threads, _stamp(source))
        return cls(source, shapes, threads)

    def __call__(self, plan: Plan) -> Executable:
        network = load(self.source, self.threads, plan=plan, shapes=self.shapes)
        assert isinstance(network, Executable)  # its shapes are given
        return network

    def __reduce__(self) -> tuple[type[_Reload], tuple[Any, ...]]:
        source = self.source
        if isinstance(source, Path):
            if _stamp(source) != self.stamp:
                raise ModelFileError(
                    f"{source} is another file than the one that was loaded: load it again"
                )
            source = find_model(source)
        return _Reload, (source, self.shapes, self.threads)


def _stamp(path: Path) -> tuple[int, int] | None:
    """The size and the time of a file; None if there is none any more."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class _Loading:
    """What `load` was asked for. Called with shapes, it gives the network for them."""

    model: onnx.ModelProto | SharedModel
    shapes: Mapping[str, Sequence[int]]
    threads: int
    database: Database | str | Path | None
    policy: str
    limits: Limits
    seconds: float
    said: list[str] = field(default_factory=list)

    def __call__(self, shapes: Mapping[str, Shape], common: Common) -> Executable:
        """The network for these shapes. Only the first remark is a warning: others are alike."""
        network, remark = self.network(shapes, common)
        if remark and not self.said:
            self.said.append(remark)
            warnings.warn(remark, stacklevel=2)
        return network

    def network(
        self, shapes: Mapping[str, Shape], common: Common | None = None
    ) -> tuple[Executable, str]:
        """The network for these shapes, and a remark."""
        cpu = Cpu.host()
        graph = optimise(load_network(self.model, {**self.shapes, **shapes}))

        def within(limits: Limits) -> tuple[Executable, str]:
            return self._within(graph, limits, cpu, common)

        found, remark, own = within_outputs(graph, self.limits, cpu, self.threads, within)
        if own != self.limits:
            tighter = (
                f"the errors of layers of {graph.name} add up: to keep its outputs within "
                f"{self.limits.error:.2g}, layers have a limit of {own.error:.2g}"
            )
            remark = "; ".join(filter(None, (remark, tighter)))
        return found, remark

    def _within(
        self, graph: Graph, limits: Limits, cpu: Cpu, common: Common | None
    ) -> tuple[Executable, str]:
        """The network with these limits of its layers, and a remark."""
        planned = 1 if self.policy == "reproducible" else self.threads
        found, remark = None, ""
        if self.policy != "heuristic":
            first = self.policy == "profile" and limits == self.limits
            found, remark = _by_database(
                graph, self.database, cpu, planned, limits, self.seconds if first else 0.0
            )
        plan, arrangement = found or _planned(
            graph, guessed_choices(cpu, planned, limits), cpu, planned, limits
        )
        remarks = filter(None, (remark, _first(graph.notes), _first(slow_nodes(graph))))
        network = Executable.of(arrangement, cpu, self.threads, plan, common=common)
        return network, "; ".join(remarks)


def _first(notes: Sequence[str]) -> str:
    """The first of some lines about nodes, and how many more there are; "" if there is none."""
    if not notes:
        return ""
    first, *others = notes
    more = f"; so do {plural(len(others), 'node')} more: `fastrun show MODEL` lists them"
    return first + more * bool(others)


def _by_plan(graph: Graph, given: Plan, cpu: Cpu, threads: int) -> tuple[Executable, str]:
    """The network by a plan, which is first compared if it is of another machine; and a remark."""
    arrangement = follow_plan(graph, given, cpu, _moving(threads))
    done = carried_out(given, arrangement)
    changed = [name for name, form in done.forms.items() if form != given.forms[name]]
    remark = (
        f"this machine cannot build the plan of {given.network!r} for "
        f"{plural(len(changed), 'step')} ({', '.join(changed[:3])}{', ...' * (len(changed) > 3)}): "
        "the heuristic chooses for those"
    )
    if given.machine == cpu.fingerprint:
        network = Executable.of(arrangement, cpu, threads, done)
    else:
        network = verified(graph, done, arrangement, cpu, threads)
    return network, remark if changed else ""


def _by_database(
    graph: Graph,
    database: Database | str | Path | None,
    cpu: Cpu,
    threads: int,
    limits: Limits,
    tuning: float,
) -> tuple[tuple[Plan, Arrangement] | None, str]:
    """The plan by the database, None if it cannot be read; and a remark."""
    own = database is None
    if own and not tuning and not os.path.exists(cache_root() / "fastrun.db"):
        return _by_package(graph, cpu, threads, limits)
    # A plan in a file, or the heuristic, does not need SQL.
    from fastrun.tuner.store.database import Database, DatabaseError

    try:
        with ExitStack() as opened:
            if isinstance(database, Database):
                store = database
            else:
                # The default database is migrated from an older schema. Any other is only read.
                store = Database(database, not own and not tuning, timeout=_LOCK_SECONDS)
                opened.enter_context(store)
            return _by_store(graph, store, cpu, threads, limits, tuning)
    except DatabaseError as error:
        return None, f"{error}; running by heuristics"


def _by_package(
    graph: Graph, cpu: Cpu, threads: int, limits: Limits
) -> tuple[tuple[Plan, Arrangement], str]:
    """The plan by what comes with the package where nothing was tuned; and a remark."""
    known = set[Problem]()
    choose = pretuned_choices(cpu, threads, limits, used=known.add)
    made = _planned(graph, choose, cpu, threads, limits)
    wanted = {p for p, _, _ in convolutions(graph)}
    running = "running by heuristics"
    if known & wanted:
        running = (
            f"{len(known & wanted)} of {plural(len(wanted), 'convolution')} of {graph.name} run by "
            f"winners that come with the package for {kind(cpu)}, the others by heuristics"
        )
    return made, f"nothing is tuned here: {running} (`fastrun tune` measures)"


def _by_store(
    graph: Graph, store: Database, cpu: Cpu, threads: int, limits: Limits, tuning: float
) -> tuple[tuple[Plan, Arrangement], str]:
    """The plan that an open database stores, or one by its records; and a remark."""
    from fastrun.tuner.networks.stored_plans import stored_plan

    moving = _moving(threads)
    stored = stored_plan(graph, store, cpu, threads, limits, moving)
    if tuning and not stored:
        from fastrun.tuner.networks.tune import tune_network

        tune_network(graph, store, threads, tuning, limits)
        stored = stored_plan(graph, store, cpu, threads, limits, moving)
    light = limits.weights is None or (stored and packed_bytes(stored[1]) <= limits.weights)
    if stored and light:
        return stored, ""
    missing = set[Problem]()
    each = 1 if limits.weights is None else ALL
    choose = stored_choices(store, cpu, threads, limits, each, missing.add)
    return _planned(graph, choose, cpu, threads, limits), _remark(
        graph, store.name, missing, threads
    )


def _planned(
    graph: Graph, choose: Choose, cpu: Cpu, threads: int, limits: Limits
) -> tuple[Plan, Arrangement]:
    rounded = roundings(limits.error, cpu)
    return make_plan(graph, choose, cpu, _moving(threads), threads, rounded, limits.weights)


def _moving(threads: int) -> Costs:
    """The costs of moving data: measured ones if this machine has a report, else guesses."""
    from fastrun.tuner.machine.probe import on_file
    from fastrun.tuner.networks.costs import costs

    report = on_file()
    return costs(report, threads) if report else GUESSED


def _remark(graph: Graph, database: str, missing: set[Problem], threads: int) -> str:
    """A remark on the problems for which the heuristic chooses, because current records lack."""
    wanted = {p for p, _, _ in convolutions(graph)}
    if not missing & wanted:
        return ""
    return (
        f"{database} holds no current measurement of {len(missing & wanted)} of "
        f"{plural(len(wanted), 'convolution')} of {graph.name} on "
        f"{plural(threads, 'thread')}: the heuristic chooses for those (`fastrun tune"
        f"{f' --threads {threads}' if threads > 1 else ''}` measures them)"
    )
