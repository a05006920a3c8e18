"""Find the best schedule of every convolution of the targets."""

from __future__ import annotations

import json
import math
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastrun.kernels.core.rounding import roundings
from fastrun.options import (
    algorithms,
    budget,
    conditions,
    core_list,
    limits_of,
    new_file,
    objectives,
    pictures,
    preparation,
    sampler,
    shape_sets,
    shapes,
    shapes_of,
    share,
)
from fastrun.tuner.networks.targets import Target, merged, read_target
from fastrun.tuner.records.affinity import usable_cores
from fastrun.tuner.records.units import duration, finite, percent, plural
from fastrun.tuner.terminal.exits import INTERRUPTED

if TYPE_CHECKING:
    from fastrun.graph.plan.plan import Plan
    from fastrun.tuner.machine.probe import MachineReport
    from fastrun.tuner.measure.measurer import Measurer
    from fastrun.tuner.search.budget import Effort
    from fastrun.tuner.search.summary import Summary
    from fastrun.tuner.store.database import Database
    from fastrun.tuner.store.standing import Standing

# The share of the time, behind the calibration, that is for precisions of whole networks.
_VALIDATION = 0.4


def options(parser: ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="TARGET")
    budget(parser)
    shapes(parser)
    conditions(parser, both=True, several=True)
    parser.add_argument(
        "--policy",
        choices=("profile", "cached", "heuristic", "model"),
        default="profile",
        help="profile: measure schedules (default). cached: print stored results, and the "
        "heuristic's choice where there are none. heuristic: print the heuristic's choice only. "
        "model: print the cost model's. Only profile measures",
    )
    parser.add_argument(
        "--algorithms",
        type=algorithms,
        default=(),
        metavar="A,B",
        help="search only these; 'winograd(mh=2|4, prefetch=0)' allows only these values of fields",
    )
    parser.add_argument(
        "--sampler",
        type=sampler,
        metavar="NAME",
        help="what proposes schedules: gp, tpe, random, exhaustive, local, cmaes, or the import "
        "path of any sampler of Optuna, such as optuna.samplers.QMCSampler (default: gp, or as the "
        "effort says)",
    )
    parser.add_argument(
        "--objectives",
        type=objectives,
        default=("time",),
        metavar="A,B",
        help="what the sampler minimises, of time, error and workspace (default time); several "
        "need a sampler such as optuna.samplers.NSGAIISampler",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the search's random numbers (default 0)",
    )
    parser.add_argument(
        "--storage",
        type=new_file,
        metavar="FILE",
        help="keep the Optuna studies of the search in this journal file, for `fastrun dashboard`",
    )
    parser.add_argument(
        "--keep-bits",
        action="store_true",
        help="keep the results of networks to the bit: compare only plans that compute the same "
        "bits as the stored one",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="do not show how the search goes, on standard error"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the results as JSON, and all else on standard error",
    )
    precision = parser.add_argument_group("mixed precision of one network")
    precision.add_argument(
        "--calibrate",
        type=Path,
        metavar="DATA",
        help="examples of inputs: a folder of pictures or of .npy and .npz files, or one .npz file "
        "with an array for each input, whose first axis counts examples; its `labels`, if there, "
        "are their classes. Layers may then compute in 8 bits",
    )
    precision.add_argument(
        "--max-loss",
        type=share,
        default=0.005,
        metavar="P%%",
        help="the loss that is allowed, as a share of the examples: of accuracy with labels, of "
        "agreement with float32 without (default 0.5%%)",
    )
    precision.add_argument(
        "-o",
        "--output",
        type=new_file,
        metavar="FILE",
        help="write the chosen network (.onnx, QDQ), and its plan beside it (.plan)",
    )
    pictures(parser)
    elsewhere = parser.add_argument_group("other machines")
    elsewhere.add_argument(
        "--workers",
        metavar="URL",
        help="measure on all workers (`fastrun worker`) of the scheduler at URL, such as "
        "tcp://host:8786",
    )
    elsewhere.add_argument(
        "--machine",
        metavar="FINGERPRINT",
        help="use only workers whose CPU fingerprint (see `fastrun doctor`) begins with this",
    )
    elsewhere.add_argument(
        "--device",
        metavar="NAME",
        help="measure on a device without Python: ssh:user@board, adb:SERIAL, or exec:COMMAND, "
        "which runs the program whose path is put in the place of {} or at the end",
    )
    elsewhere.add_argument(
        "--device-cores",
        type=core_list,
        default=(),
        metavar="4-7",
        help="cores of the device, all of one type (default: those of its fastest type)",
    )


def run(arguments: Namespace) -> int:
    """Search for the best schedules of the targets, or print what a policy would use."""
    if not arguments.json or arguments.policy != "profile":
        return _run(arguments, [])
    documents: list[dict[str, Any]] = []
    with redirect_stdout(sys.stderr):
        code = _run(arguments, documents)
    print(json.dumps({"interrupted": code == INTERRUPTED, "runs": documents}, indent=1))
    return code


def _run(arguments: Namespace, documents: list[dict[str, Any]]) -> int:
    """As `run`; what was found is appended to the `documents`."""
    from fastrun.choices import print_choices
    from fastrun.tuner.records.record import REGIMES
    from fastrun.tuner.store.database import Database, existing

    if arguments.calibrate:
        return _mixed(arguments)
    sets = shape_sets(arguments)
    targets = [read_target(text, given) for text in arguments.targets for given in sets]
    also: list[str] = []
    if arguments.regime == "both":
        arguments.regime, *also = REGIMES
    runs = _runs(arguments)
    if arguments.policy in ("heuristic", "model"):
        return max(print_choices(targets, None, one) for one in runs)
    if arguments.policy == "cached":
        with existing(arguments.db) as database:
            return max(print_choices(targets, database, one) for one in runs)
    with Database(arguments.db) as database:
        for one in runs:
            tuning = _Tuning(targets, database, one, also)
            code = tuning.profile()
            documents.append(tuning.document)
            if code:
                return code
        machine = tuning.device
    _say_what_next(targets[-1], runs[-1], database.name, machine)
    return 0


def _mixed(arguments: Namespace) -> int:
    """Tune a network's layers in float32 and in 8 bits, and choose among them within a loss."""
    from fastrun.graph.core.errors import InputError
    from fastrun.graph.networks import load_network
    from fastrun.graph.passes.pipeline import optimise
    from fastrun.graph.to_onnx.model import export_onnx
    from fastrun.kernels.core.cpu import Cpu
    from fastrun.precision import print_front, too_few
    from fastrun.tuner.precision.tune import advise, examples, problems_of, tune_precision
    from fastrun.tuner.store.database import Database
    from fastrun.tuner.terminal.phases import Phases

    output = arguments.output
    if arguments.device:
        raise InputError("precision is chosen by running whole networks, which devices do not")
    if len(arguments.targets) > 1 or len(arguments.threads) > 1 or arguments.regime == "both":
        raise InputError("precision is chosen for one network, thread count and regime at a time")
    if output and (output.suffix != ".onnx" or not output.parent.is_dir()):
        raise InputError(f"{output}: give a file that ends in .onnx, in a folder that exists")
    begin = monotonic()
    (one,), (name,) = _runs(arguments), arguments.targets
    graph = optimise(load_network(name, shapes_of(arguments)))
    if graph.grids:
        raise InputError(f"{name} is quantised already: give the model of float32")
    data, labels = examples(graph, arguments.calibrate, preparation(arguments))
    with Phases() as progress:
        network = advise(graph, data, Cpu.host(), progress)
    problems = problems_of(network)
    target = Target(name, problems, graph.digest, "its precision is chosen after the search")
    left = math.inf if one.seconds is None else one.seconds - (monotonic() - begin)
    if one.seconds is not None:
        one.seconds = (1 - _VALIDATION) * max(left, 1.0)
    with Database(arguments.db) as database:
        if code := profile([target], database, one, baselines=False):
            return code
        limit, limits = arguments.max_loss, limits_of(one)
        if one.seconds is not None:
            left = arguments.seconds - (monotonic() - begin)
        with Phases() as progress:
            done = tune_precision(
                graph, network, data, labels, limit, database, one.threads, limits, progress, left
            )
    print_front(done.document())
    if advice := too_few(done.document(), limit):
        print(advice)
    if output:
        output.write_bytes(export_onnx(done.graph).SerializeToString())
        _save_plan(output, one)
    return 0


def _save_plan(model: Path, arguments: Namespace) -> None:
    """Save the plan of a file beside it: its tensors have other names than before the export."""
    from fastrun.loading import loaded

    asked = {"model": model, "policy": "cached", "shape": (), "plan": None, "max_weights": None}
    file = model.with_suffix(".plan")
    loaded(Namespace(**{**vars(arguments), **asked})).plan.save(file)
    words = ["fastrun", "run", str(model), "--plan", str(file)]
    words += ["--threads", str(arguments.threads)] if arguments.threads > 1 else []
    print(f"{model}: the chosen network; {file}: its plan")
    print(f"next: `{shlex.join(words)} --input FILE`")


def _runs(arguments: Namespace) -> list[Namespace]:
    """A run for each number of threads; the runs share the time."""
    seconds = arguments.seconds and arguments.seconds / len(arguments.threads)
    return [
        Namespace(**{**vars(arguments), "threads": threads, "seconds": seconds})
        for threads in arguments.threads
    ]


def _say_what_next(target: Target, arguments: Namespace, database: str, machine: str) -> None:
    """Print what can be done with what was found, under the conditions it was found under."""
    same = "" if arguments.threads == 1 else f" --threads {arguments.threads}"
    if arguments.db is not None:
        # A URL as we name it, which is without its password.
        given = database if "://" in arguments.db else arguments.db
        same += f" --db {shlex.quote(given)}"
    regime = "" if arguments.regime == "hot" else f" --regime {arguments.regime}"
    name = shlex.quote(target.name)
    for given, sizes in target.shapes.items():
        name += f" --shape {shlex.quote(given)}={'x'.join(map(str, sizes))}"
    if machine:
        print(f"next: `fastrun report {name}{regime}{same} --machine {machine}` writes a page")
        return
    if target.lacks:
        print(f"{target.title} cannot be run as a whole: {target.lacks}")
        look = f"`fastrun best {name}{regime}{same}` lists the schedules"
    elif target.is_network:
        look = f"`fastrun plan {name}{same}` says what runs"
    else:
        look = f"`fastrun show {name}{regime}{same}` takes the kernel apart"
    cores = len(usable_cores())
    if arguments.threads == 1 < cores and not (arguments.workers or arguments.device):
        print(
            f"these times are of one thread and say little of others: `--threads {cores}` tunes "
            f"for {cores}"
        )
    print(f"next: {look}, `fastrun report {name}{regime}{same}` writes a page")


def profile(
    targets: Sequence[Target],
    database: Database,
    arguments: Namespace,
    also: Sequence[str] = (),
    baselines: bool = True,
) -> int:
    """Tune, with finals in the regimes `also` given, and show what has come of it."""
    return _Tuning(targets, database, arguments, also, baselines).profile()


class _Tuning:
    """One run of the command: first the search, then a final for each network."""

    def __init__(
        self,
        targets: Sequence[Target],
        database: Database,
        arguments: Namespace,
        also: Sequence[str],
        baselines: bool = True,
    ) -> None:
        from fastrun.tuner.networks.stored_plans import FINALS
        from fastrun.tuner.search.budget import Budget

        self._begin = monotonic()
        self._targets, self._database, self._arguments = targets, database, arguments
        self._also, self._limits, self._baselines = also, limits_of(arguments), baselines
        self.document: dict[str, Any] = {
            "targets": [target.title for target in targets],
            "threads": arguments.threads,
            "unsupported": {t.title: t.lacks for t in targets if t.lacks},
        }
        self._measurer, self._report = _measurer(arguments)
        self._problems = merged(targets, roundings(self._limits.error, self._measurer.cpu))
        self._effort = _effort(arguments)
        limit = arguments.seconds
        if limit is None and self._effort.seconds is not None:
            limit = self._effort.seconds * len(self._problems)
        self._budget = Budget(limit, arguments.trials, self._effort.worth)
        # Other machines measure layers only.
        tunable = [t for t in targets if t.is_network and not t.lacks]
        self._elsewhere = bool(arguments.workers or arguments.device)
        self._networks = [] if self._elsewhere else tunable
        self._kept = {target.title: self._stored(target) for target in self._networks}
        self._finals_share = FINALS if self._networks else 0.0

    @property
    def device(self) -> str:
        """The beginning of the fingerprint of the device that measured, if one did."""
        return self._measurer.cpu.fingerprint[:8] if self._arguments.device else ""

    def profile(self) -> int:
        """Do it all, and show what has come of it."""
        self.print_warnings()
        summary = self.search()
        found = self.print_standings()
        self.print_summary(summary)
        if summary.interrupted:
            print("interrupted: run the same command again to continue")
            return INTERRUPTED
        self.run_finals(summary, found)
        return 0

    def _stored(self, target: Target) -> Plan | None:
        """The plan whose bits are to be kept, if any are."""
        if not self._arguments.keep_bits:
            return None
        from fastrun.graph.core.errors import PlanError
        from fastrun.graph.networks import load_network
        from fastrun.graph.passes.pipeline import optimise
        from fastrun.tuner.networks.stored_plans import stored_plan

        graph, threads = optimise(load_network(target.name, target.shapes)), self._arguments.threads
        cpu = self._measurer.cpu
        found = stored_plan(graph, self._database, cpu, threads, self._limits)
        if found is None:
            raise PlanError(
                f"there are no bits to keep: no current plan of {target.title} is stored for "
                f"{plural(threads, 'thread')}; tune without --keep-bits first"
            )
        return found[0]

    def print_warnings(self) -> None:
        """What makes measurements on this machine worse, and what cannot be tuned."""
        from fastrun.processor import shortcoming
        from fastrun.tuner.machine.noise import others
        from fastrun.tuner.measure.confine import unconfined

        warnings = getattr(self._measurer, "warnings", ())
        if not self._elsewhere:
            warnings = (unconfined(), others())
        for warning in filter(None, (shortcoming(self._measurer.cpu), *warnings)):
            print(warning)
        for target in self._targets:
            if target.lacks:
                print(f"only the convolutions of {target.title} are tuned: {target.lacks}")

    def search(self) -> Summary:
        """Search the schedules of all problems, with a board that shows how it goes."""
        from fastrun.tuner.records.provenance import command_line
        from fastrun.tuner.search.fastrun import fast_run
        from fastrun.tuner.search.options import SearchOptions
        from fastrun.tuner.search.progress import Progress
        from fastrun.tuner.search.storage import journal
        from fastrun.tuner.terminal.board import Board
        from fastrun.tuner.terminal.display import screen

        arguments, budget = self._arguments, self._budget
        console = screen(progress=True)
        if arguments.quiet:
            console.quiet = True
        with Board(console, self._title(), budget) as board:
            before = monotonic() - self._begin
            if budget.seconds is not None:
                share = 1 - self._finals_share
                budget = replace(budget, seconds=share * budget.seconds - before)

            def observe(progress: Progress) -> None:
                board(replace(progress, elapsed=before + progress.elapsed))

            return fast_run(
                self._problems,
                self._database,
                budget,
                sampler=arguments.sampler or self._effort.sampler,
                options=SearchOptions(
                    seed=arguments.seed,
                    algorithms=arguments.algorithms,
                    limits=self._limits,
                    protocol=self._effort.protocol,
                    also=self._also,
                    objectives=arguments.objectives,
                    storage=journal(arguments.storage) if arguments.storage else None,
                    baselines=self._baselines,
                ),
                measurer=self._measurer,
                observe=observe,
                command=command_line(["fastrun", *arguments.words]),
            )

    def _title(self) -> str:
        arguments, budget = self._arguments, self._budget
        return (
            f"{', '.join(target.title for target in self._targets)}: "
            f"{plural(len(self._problems), 'problem')}, {plural(arguments.threads, 'thread')}, "
            f"{' and '.join([arguments.regime, *self._also])}, "
            f"{_budget_text(budget.seconds, budget.trials)}"
        )

    def print_standings(self) -> Sequence[Standing]:
        """The best of every problem, for each regime; returns those of the last regime."""
        from fastrun.tuner.records.record import Conditions
        from fastrun.tuner.store.standing import standings
        from fastrun.tuner.terminal.display import network_sums, screen, standings_table

        threads, console = self._arguments.threads, screen()
        for regime in (self._arguments.regime, *self._also):
            conditions = Conditions(self._measurer.cpu.fingerprint, threads, regime)
            found = standings(self._database, self._problems, conditions, self._limits)
            self.document.setdefault("problems", {})[regime] = [_standing(one) for one in found]
            if self._also:
                print(regime)
            standings_table(console, found, self._report.peak_of(threads))
            for target in self._targets:
                if target.is_network:
                    network_sums(console, target, found)
        return found

    def print_summary(self, summary: Summary) -> None:
        """How many trials there were, how noisy the machine was, and what was left out."""
        from fastrun.tuner.machine.noise import NOISY, amount, in_words, noise_of
        from fastrun.tuner.search.budget import enough

        limit, count = self._budget.seconds, plural(len(self._problems), "problem")
        # What is not search is the start, which takes long on a busy machine.
        start = monotonic() - self._begin - summary.seconds
        rate = summary.trials / summary.seconds if summary.seconds else 0.0
        noise = noise_of(self._database.records(run=summary.run))
        self.document |= {
            "run": summary.run,
            "trials": summary.trials,
            "known": summary.known,
            "seconds": summary.seconds,
            "noise": finite(noise),
            "left_out": list(summary.left_out),
            "database": self._database.name,
        }
        if noise >= NOISY:
            print(f"noise {amount(noise)}; {in_words(noise)}")
        print(
            f"{plural(summary.trials, 'trial')} in {duration(summary.seconds)} ({rate:.1f}/s), "
            f"{summary.known} known before, noise {amount(noise)}; stored in {self._database.name}"
        )
        if storage := self._arguments.storage:
            print(f"studies in {storage}: `fastrun dashboard {storage}` shows them")
        if summary.left_out:
            print(f"left out, because time ran out: {'; '.join(summary.left_out)}")
        if limit and not (summary.trials or summary.interrupted or summary.settled):
            look = start + enough([p for p, _ in self._problems])
            print(
                f"no schedule was measured: {duration(limit)} is too short for {count}, "
                f"{duration(start)} of it went to the start; {duration(look)} is enough for a "
                "first look"
            )
        if self._budget.worth is not None and summary.settled:
            print(
                f"{len(summary.settled)} of {count} were ended early: doubling their trials "
                f"improved the best time by less than {percent(self._budget.worth)}"
            )

    def run_finals(self, summary: Summary, found: Sequence[Standing]) -> None:
        """A final for each network, in equal parts of the time that is left."""
        from fastrun.tuner.store.standing import network_seconds, of_network

        limit, share = self._budget.seconds, self._finals_share
        for n, target in enumerate(self._networks):
            naive, *_ = network_seconds(of_network(found, target.problems))
            left = summary.seconds * share / (1 - share)
            if limit is not None:
                left = limit - (monotonic() - self._begin)
            if left <= 0:
                print(f"left out, because time ran out: the final of {target.title}")
                continue
            seconds = left / (len(self._networks) - n)
            print(f"final of the plans of {target.title}, for some {duration(seconds)}")
            self._final(target, seconds, summary.run, naive)
        if limit is not None:
            print(f"{duration(monotonic() - self._begin)} of {duration(limit)} taken")

    def _final(self, target: Target, seconds: float, run: str, naive: float) -> None:
        """Race the plans of a network, store the fastest, and show how they did."""
        from fastrun.graph.core.errors import UnsupportedError
        from fastrun.graph.networks import load_network
        from fastrun.graph.passes.pipeline import optimise
        from fastrun.tuner.measure.sandbox import WorkerDied
        from fastrun.tuner.networks.final import NoTimeError
        from fastrun.tuner.networks.same_bits import BitsError
        from fastrun.tuner.networks.stored_plans import store_plan
        from fastrun.tuner.terminal.display import final_table, screen

        graph = optimise(load_network(target.name, target.shapes))
        threads, strict = self._arguments.threads, self._arguments.seconds is not None
        database, limits, kept = self._database, self._limits, self._kept[target.title]
        try:
            record = store_plan(graph, database, threads, seconds, limits, run, strict, kept)
        except (UnsupportedError, WorkerDied, NoTimeError, BitsError) as error:
            print(f"{target.title} has no final: {error}")
            return
        self.document.setdefault("networks", []).append(
            {
                "network": target.title,
                "kept": record.kept,
                "verdict": record.verdict,
                "seconds": {name: finite(record.seconds(name)) for name in record.samples},
            }
        )
        final_table(screen(), record, naive)


def _standing(one: Standing) -> dict[str, Any]:
    """The JSON form of a standing; times in seconds."""
    from fastrun.tuner.store.standing import seconds

    times = {"naive": one.naive, "heuristic": one.heuristic, "best": one.best}
    return {
        "problem": str(one.problem),
        "count": one.count,
        **{name: finite(seconds(record)) for name, record in times.items()},
        "schedule": one.best.schedule if one.best else None,
        "verdict": one.verdict,
    }


def _measurer(arguments: Namespace) -> tuple[Measurer, MachineReport]:
    """What measures, here or elsewhere, and what that machine can do."""
    from fastrun.graph.core.errors import InputError

    if arguments.device and arguments.workers:
        raise InputError("--device and --workers are two ways to measure elsewhere: choose one")
    if arguments.device:
        from fastrun.tuner.device.device import Device

        on = arguments.device_cores
        device = Device(arguments.device, arguments.threads, arguments.regime, on=on)
        return device, device.report
    if arguments.workers is None:
        from fastrun.tuner.machine.probe import probe
        from fastrun.tuner.measure.measurer import Measurer

        return Measurer(arguments.threads, arguments.regime), probe()
    from fastrun.tuner.remote.fleet import Fleet

    fleet = Fleet(arguments.workers, arguments.threads, arguments.regime, machine=arguments.machine)
    return fleet, fleet.report


def _effort(arguments: Namespace) -> Effort:
    """The effort asked for; a budget of the user's own is spent whole unless one is."""
    from fastrun.tuner.search.budget import EFFORTS, Effort

    if arguments.effort:
        return EFFORTS[arguments.effort]
    own = arguments.seconds is not None or arguments.trials is not None
    return Effort(None, None) if own else EFFORTS["normal"]


def _budget_text(limit: float | None, trials: int | None) -> str:
    parts = [] if limit is None else [f"{limit:.0f} s"]
    parts += [] if trials is None else [f"{plural(trials, 'trial')} each"]
    return ", ".join(parts)
