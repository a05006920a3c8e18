"""Find the best schedule of every convolution of the targets."""

from __future__ import annotations

import json
import math
import shlex
import sys
from argparse import ArgumentParser, Namespace
from contextlib import redirect_stdout
from pathlib import Path
from time import monotonic
from typing import Any

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
from fastrun.tuner.networks.targets import Target, read_target
from fastrun.tuner.records.affinity import usable_cores
from fastrun.tuner.records.units import plural
from fastrun.tuner.terminal.exits import INTERRUPTED
from fastrun.tuner.terminal.prose import say
from fastrun.tuning import Tuning

# The share of the time for calibration, and of the time behind it that for whole networks.
_CALIBRATION, _VALIDATION = 0.2, 0.4


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
        metavar="SHARE",
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
            tuning = Tuning(targets, database, one, also)
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
    from fastrun.kernels.core.whole_file import write_whole
    from fastrun.precision import print_front, too_few
    from fastrun.tuner.precision.tune import (
        advise,
        examples,
        plan_of_file,
        problems_of,
        tune_precision,
    )
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
    calibrating = math.inf if one.seconds is None else _CALIBRATION * one.seconds
    with Phases() as progress:
        network = advise(graph, data, Cpu.host(), progress, calibrating)
    problems = problems_of(network, Cpu.host())
    target = Target(name, problems, graph.digest, "its precision is chosen after the search")
    left = math.inf
    if one.seconds is not None:
        # A little of the calibration cannot be left out, and what follows needs some time anyway.
        left = max(one.seconds - (monotonic() - begin), one.seconds / 2)
        one.seconds, ends = (1 - _VALIDATION) * left, monotonic() + left
    with Database(arguments.db) as database:
        if code := Tuning([target], database, one, baselines=False).profile():
            return code
        limit, limits = arguments.max_loss, limits_of(one)
        if one.seconds is not None:
            left = ends - monotonic()
        with Phases() as progress:
            done = tune_precision(
                graph, network, data, labels, limit, database, one.threads, limits, progress, left
            )
        if output:
            write_whole(output, export_onnx(done.graph).SerializeToString())
            plan = plan_of_file(output, done.types, database, one.threads, limits)
            plan.save(output.with_suffix(".plan"))
    print_front(done.document())
    if advice := too_few(done.document(), limit):
        print(advice)
    if output:
        _say_what_was_written(output, len(done.types), one.threads)
    return 0


def _say_what_was_written(model: Path, halves: int, threads: int) -> None:
    """Print which files there are, and how to run them."""
    plan = model.with_suffix(".plan")
    only = f", which alone says that {plural(halves, 'layer')} have 16 bits" if halves else ""
    print(f"{model}: the chosen network; {plan}: its plan{only}")
    words = ["fastrun", "run", str(model), "--plan", str(plan)]
    words += ["--threads", str(threads)] if threads > 1 else []
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
        say(f"{target.title} cannot be run as a whole: {target.lacks}")
        look = f"`fastrun best {name}{regime}{same}` lists the schedules"
    elif target.is_network:
        look = f"`fastrun plan {name}{same}` says what runs"
    else:
        look = f"`fastrun show {name}{regime}{same}` takes the kernel apart"
    cores = len(usable_cores())
    if arguments.threads == 1 < cores and not (arguments.workers or arguments.device):
        say(
            f"these times are of one thread and say little of others: `--threads {cores}` tunes "
            f"for {cores}"
        )
    print(f"next: {look}")
    print(f"      `fastrun report {name}{regime}{same}` writes a page")
