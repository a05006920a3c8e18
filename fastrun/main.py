"""The command line: `fastrun`, or `python -m fastrun`.

Commands import what they need when they run, so that asking for help costs nothing.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fastrun import options
from fastrun.tuner.records.affinity import check_threads
from fastrun.tuner.terminal.exits import MISTAKE, ended, leave

Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Answers a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to read more; exit with 2."""
        self.exit(MISTAKE, f"fastrun: error: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, as `tuner.terminal.exits` says."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, names = parsers()
    if not words:
        parser.print_help()
        return 0
    if not words[0].startswith("-") and words[0] not in names:
        close = difflib.get_close_matches(words[0], names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
        parser.exit(MISTAKE, f"fastrun: error: no command {words[0]!r}: {hint}\n")
    arguments, strange = parser.parse_known_args(words)
    arguments.words = words
    if strange:
        _refuse(strange[0], names.get(words[0], parser))
    _check_threads(parser, arguments)

    def command() -> int:
        module, function = arguments.command
        run: Command = getattr(importlib.import_module(f"fastrun.commands.{module}"), function)
        return run(arguments)

    return ended("fastrun", command)


def program() -> NoReturn:
    """The command line as a program of its own."""
    leave(main())


def _refuse(word: str, command: Parser) -> NoReturn:
    """Say that a command does not know a word, and which option may have been meant."""
    options = re.findall(r"--[\w-]+", command.format_usage())
    close = difflib.get_close_matches(word.partition("=")[0], options, n=1)
    hint = f": did you mean {close[0]}?" if close and word.startswith("-") else ""
    command.error(f"`{command.prog}` takes no {word!r}{hint}")


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of the commands by name."""
    parser = Parser(
        prog="fastrun",
        description="Autotuned convolution kernels for the CPU at hand. New here? `fastrun demo` "
        "tunes a network and writes a report; `fastrun doctor` looks at this machine.",
        epilog="A TARGET is a built-in network (resnet18, resnet50, mobilenetv2, shufflenetv2, "
        "vgg16, squeezenet1.1), an ONNX file, or the text of a problem in quotes, such as "
        "'conv 1x64x56x56 64x3x3 s1 p1 bias relu'.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
        added.set_defaults(command=(name.replace("-", "_"), "run"))
        return added

    c = command("doctor", "show this machine: caches, measured peak, bandwidths, noise")
    c.add_argument("--refresh", action="store_true", help="measure again")
    c.add_argument("--json", action="store_true", help="as JSON, with nothing left out")

    c = command("tune", "find the best schedule of every convolution of the targets")
    c.add_argument("targets", nargs="+", metavar="TARGET")
    options.budget(c)
    options.conditions(c, both=True)
    c.add_argument(
        "--policy",
        choices=("profile", "cached", "heuristic"),
        default="profile",
        help="profile measures (default); cached shows what is stored and else the heuristic; "
        "heuristic looks nothing up. The last two never measure",
    )
    c.add_argument(
        "--algorithms",
        type=options.algorithms,
        default=(),
        metavar="A,B",
        help="search only these; 'winograd(mh=2|4, prefetch=0)' pins some of its fields",
    )
    c.add_argument(
        "--sampler",
        type=options.sampler,
        metavar="NAME",
        help="what proposes schedules: gp, tpe, random, exhaustive, local, cmaes, or the import "
        "path of any sampler of Optuna, such as optuna.samplers.QMCSampler (default: gp, or as the "
        "effort says)",
    )
    c.add_argument(
        "--objectives",
        type=options.objectives,
        default=("time",),
        metavar="A,B",
        help="what the sampler minimises, of time, error and workspace (default time); several "
        "need a sampler such as optuna.samplers.NSGAIISampler",
    )
    c.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the search's random numbers (default 0)",
    )
    elsewhere = c.add_argument_group("other machines")
    elsewhere.add_argument(
        "--workers",
        metavar="URL",
        help="measure on all `fastrun worker` of this scheduler, such as tcp://host:8786",
    )
    elsewhere.add_argument(
        "--machine", metavar="PRINT", help="on those of this kind: the start of a fingerprint"
    )
    c.add_argument(
        "--storage",
        type=Path,
        metavar="FILE",
        help="keep the Optuna studies of the search in this journal file, for `fastrun dashboard`",
    )

    c = command("worker", "measure candidates for `fastrun tune --workers` on another machine")
    c.add_argument("address", metavar="URL", help="of the scheduler, such as tcp://host:8786")
    c.add_argument(
        "--threads-per-trial",
        dest="threads",
        type=options.count,
        default=1,
        metavar="T",
        help="cores that measure a candidate (default 1)",
    )

    c = command("best", "print the best known schedule of every convolution of a target")
    c.add_argument("target", metavar="TARGET")
    c.add_argument("--json", action="store_true", help="as JSON")
    c.add_argument(
        "--pareto",
        action="store_true",
        help="all schedules that are best at something: time, workspace, error",
    )
    options.conditions(c)

    c = command("verify", "race the stored winners against the heuristic again")
    c.description = (
        "Race the stored winner of every convolution of a target against the heuristic again, in "
        "fresh processes, and store what comes of it. Exits with 1 if a winner failed or is surely "
        "slower than the heuristic."
    )
    c.add_argument("target", metavar="TARGET")
    c.add_argument("--json", action="store_true", help="as JSON")
    options.thread_count(c)
    options.regime(c)
    options.database(c)

    c = command("show", "take a kernel apart, or list the problems of a network")
    c.add_argument("target", metavar="TARGET")
    c.add_argument("algorithm", nargs="?", metavar="ALGORITHM")
    c.add_argument("--schedule", metavar="TEXT", help="this schedule, as the database writes it")
    c.add_argument("--ir", action="store_true", help="print the LLVM IR and nothing else")
    c.add_argument("--asm", action="store_true", help="print the assembly and nothing else")
    c.add_argument("--measure", action="store_true", help="verify it and time it now")
    options.conditions(c)

    c = command("plan", "print what every step of a network runs, in which layouts, how long")
    options.network(c)
    c.add_argument("--save", type=Path, metavar="FILE", help="write the plan: it starts anywhere")
    c.add_argument("--json", action="store_true", help="as JSON")

    c = command("run", "run a network once on arrays or pictures")
    options.network(c)
    c.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="FILE",
        help="an array (.npy) or a picture, for one of several inputs as NAME=FILE, or all inputs "
        "by their names (.npz)",
    )
    c.add_argument("--output", type=Path, metavar="FILE", help="write the outputs: .npy or .npz")
    c.add_argument(
        "--top",
        type=options.count,
        default=5,
        metavar="N",
        help="classes that are shown (default 5)",
    )
    pictures = c.add_argument_group(
        "pictures", "are scaled to cover the input, cut, and made (value - mean) / std of 0..255"
    )
    pictures.add_argument(
        "--crop",
        type=options.share,
        default=0.875,
        metavar="SHARE",
        help="that is kept (default 0.875)",
    )
    pictures.add_argument(
        "--mean",
        type=options.numbers,
        default=(123.675, 116.28, 103.53),
        metavar="R,G,B",
        help="or one number (default 123.675,116.28,103.53)",
    )
    pictures.add_argument(
        "--std",
        type=options.numbers,
        default=(58.395, 57.12, 57.375),
        metavar="R,G,B",
        help="or one number (default 58.395,57.12,57.375)",
    )

    c = command("bench", "time networks and layers in turns with other inference engines")
    c.add_argument("targets", nargs="*", metavar="TARGET", help="default: all built-in networks")
    c.add_argument(
        "--layers",
        nargs="?",
        const="",
        metavar="TEXT",
        help="single layers of published networks, all or those described with TEXT",
    )
    c.add_argument(
        "--peers",
        type=options.peers,
        metavar="A,B",
        help="ort, openvino, torch, ncnn, mnn, or none (default: all that are installed)",
    )
    c.add_argument(
        "--threads",
        type=options.thread_list,
        default=(1,),
        metavar="T,T",
        help="such as 1,2 (default 1)",
    )
    c.add_argument(
        "--rounds",
        type=options.count,
        metavar="N",
        help="samples (default 15 of layers, 10 of networks)",
    )
    c.add_argument("--json", type=Path, metavar="FILE", help="write all samples to this file")
    options.database(c)

    c = command("compare-search", "replay search methods on recorded spaces, without measuring")
    c.add_argument(
        "spaces",
        nargs="+",
        metavar="SPACE",
        help="a .json (T4) or .jsonl file, or the text of a problem in the database",
    )
    c.add_argument(
        "--samplers",
        type=options.samplers,
        default=("gp", "tpe", "random", "local"),
        metavar="A,B",
        help="what to compare: names and import paths as in `fastrun tune --sampler` (default "
        "gp,tpe,random,local)",
    )
    c.add_argument(
        "--repeats",
        type=options.count,
        default=100,
        metavar="N",
        help="walks of each sampler through each space (default 100)",
    )
    c.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the first walk (default 0)"
    )
    c.add_argument(
        "--out", type=Path, metavar="DIR", help="write the figure and the tables to files here"
    )
    options.thread_count(c)
    options.regime(c)
    options.database(c)

    c = command("report", "write a page, figures and tables about what was measured")
    c.add_argument("targets", nargs="*", metavar="TARGET", help="default: all that was measured")
    c.add_argument("--out", type=Path, metavar="DIR", help="default: results/ and the machine")
    options.conditions(c)

    c = command("db", "look into the database, merge, export, import")
    actions = c.add_subparsers(metavar="ACTION", required=True)
    for name, path, help in (
        ("info", "", "what is stored"),
        ("merge", "DATABASE", "add what another database holds"),
        ("export", "FILE", "write the records to a .json (T4), .csv or .jsonl file"),
        ("import", "FILE", "add the records of a .jsonl or .json (T4) file"),
    ):
        action = actions.add_parser(name, help=help, description=help)
        action.set_defaults(command=("db", f"{name}_database"))
        if path:
            action.add_argument("path", metavar=path)
        options.database(action)

    c = command("dashboard", "watch the studies of a search in the browser, by optuna-dashboard")
    c.add_argument(
        "storage",
        nargs="?",
        type=Path,
        default="optuna.journal",
        metavar="FILE",
        help="the file that `fastrun tune --storage` was given (default optuna.journal)",
    )
    c.add_argument("--port", type=options.port, default=8080, metavar="N", help="default 8080")

    c = command("demo", "tune ResNet-18 and write the report: about two minutes")
    options.budget(c)
    options.conditions(c)
    return parser, commands.choices


def _check_threads(parser: Parser, arguments: argparse.Namespace) -> None:
    """Refuse more threads than cores, unless other machines measure."""
    given = vars(arguments)
    threads = given.get("threads", 1)
    if isinstance(threads, int) and not given.get("workers"):
        try:
            check_threads(threads)
        except ValueError as error:
            parser.error(str(error))
