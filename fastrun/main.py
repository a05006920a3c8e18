"""The command line: `fastrun`, or `python -m fastrun`.

A command is a file in `commands/`, which declares its options and does its work.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from fastrun import __version__
from fastrun.tuner.records.affinity import check_threads
from fastrun.tuner.terminal.exits import MISTAKE, ended, leave

COMMANDS = (
    *("doctor", "tune", "worker", "best", "verify", "show", "plan", "run", "check"),
    *("quantise", "export", "bench", "compare-search", "report", "db", "dashboard", "demo"),
    "completion",
)
"""In the order of `fastrun --help`."""


class Parser(argparse.ArgumentParser):
    """Answers a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to read more; exit with 2."""
        self.exit(MISTAKE, f"fastrun: error: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, one of those in `tuner.terminal.exits`."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, names = parsers()
    if "_ARGCOMPLETE" in os.environ:  # set by the shell that wants to complete a line
        _complete(parser)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
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
    return ended("fastrun", lambda: arguments.command(arguments))


def _complete(parser: Parser) -> None:
    """Tell a shell how a command line may go on; ends the program."""
    import argcomplete

    argcomplete.autocomplete(parser)


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
    """The parser of the command line, and those of the commands by name."""
    parser = Parser(
        prog="fastrun",
        description="Autotuned convolution kernels for the CPU at hand. New here? `fastrun demo` "
        "tunes a network and writes a report; `fastrun doctor` describes this machine.",
        epilog="A TARGET is a built-in network (resnet18, resnet50, mobilenetv2, shufflenetv2, "
        "vgg16, squeezenet1.1, with random weights; efficientnet-lite0, ppocr-detector, "
        "ppocr-recogniser, ppocr-angle, with published weights from a package that is installed "
        "beside), an ONNX file, or the text of a problem in quotes, such as "
        "'conv 1x64x56x56 64x3x3 s1 p1 bias relu'. `fastrun help COMMAND` lists the options of a "
        "command.",
    )
    parser.add_argument("--version", action="version", version=f"fastrun {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"fastrun.commands.{name.replace('-', '_')}")
        about = module.__doc__ or ""
        line = about.partition("\n")[0].rstrip(".")
        command = commands.add_parser(name, help=line[:1].lower() + line[1:], description=about)
        command.set_defaults(command=module.run)
        module.options(command)
    return parser, commands.choices


def _check_threads(parser: Parser, arguments: argparse.Namespace) -> None:
    """Refuse more threads than cores, unless other machines measure."""
    given = vars(arguments)
    threads = given.get("threads", 1)
    if given.get("workers") or given.get("device"):
        return
    for number in [threads] if isinstance(threads, int) else threads:
        try:
            check_threads(number)
        except ValueError as error:
            parser.error(str(error))
