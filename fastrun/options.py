"""Options that commands share, and the types of their values.

A type reads one argument and raises `argparse.ArgumentTypeError` for what it cannot be.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from fastrun.tuner.records.affinity import check_threads

SAMPLERS = ("gp", "tpe", "random", "exhaustive", "local", "cmaes")
OBJECTIVES = ("time", "error", "workspace")


def network(parser: argparse.ArgumentParser) -> None:
    """What a network is and how its plan is chosen."""
    parser.add_argument("model", metavar="MODEL", help="a built-in network or an ONNX file")
    thread_count(parser)
    parser.add_argument(
        "--policy",
        choices=("cached", "heuristic", "reproducible"),
        default="cached",
        help="what was measured and else the heuristic (default); the heuristic alone; or as "
        "cached for one thread, so that any number of threads gives the same bits",
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="choose nothing: follow this")
    parser.add_argument(
        "--shape",
        type=shape,
        action="append",
        default=[],
        metavar="NAME=1x3x224x224",
        help="the shape of an input, where it is open or another one is wanted",
    )
    limits(parser)
    database(parser)


def budget(parser: argparse.ArgumentParser) -> None:
    """How long a search may take."""
    parser.add_argument(
        "--effort",
        choices=("quick", "normal", "thorough", "exhaustive"),
        help="3, 8 or 60 s per problem, less for those that level off, or every schedule there is "
        "(default normal)",
    )
    parser.add_argument(
        "--seconds", type=positive, metavar="S", help="wall time, in place of the effort's"
    )
    parser.add_argument("--trials", type=count, metavar="N", help="candidates per problem")


def thread_count(parser: argparse.ArgumentParser) -> None:
    """Threads that run a kernel."""
    parser.add_argument(
        "--threads", type=count, default=1, metavar="T", help="that run a kernel (default 1)"
    )


def conditions(parser: argparse.ArgumentParser, both: bool = False) -> None:
    """Under which conditions kernels are measured, and where that is kept."""
    thread_count(parser)
    regime(parser, both)
    limits(parser)
    database(parser)


def limits(parser: argparse.ArgumentParser) -> None:
    """What schedules may err and take."""
    parser.add_argument(
        "--max-error",
        type=error,
        metavar="E",
        help="use only schedules whose error against float64 is at most E, as an rms relative to "
        "the output's, such as 2e-6 (default: any that passed verification)",
    )
    parser.add_argument(
        "--max-workspace",
        type=size,
        metavar="SIZE",
        help="use only schedules that take at most so many bytes beside their operands, such as "
        "64K or 2M (default: any number)",
    )


def regime(parser: argparse.ArgumentParser, both: bool = False) -> None:
    """What the caches hold."""
    finals = "; both: search hot, race the leaders in both" if both else ""
    parser.add_argument(
        "--regime",
        choices=("hot", "cold-weights", *(["both"] if both else [])),
        default="hot",
        help=f"what the caches hold when a kernel starts (default hot){finals}",
    )


def database(parser: argparse.ArgumentParser) -> None:
    """Where records are."""
    parser.add_argument(
        "--db", metavar="URL", help="file or SQLAlchemy URL (default: in the cache folder)"
    )


def error(text: str) -> float:
    """An rms error relative to the output's, between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an error between 0 and 1")
    return value


def size(text: str) -> int:
    """Bytes, as in 4096, 64K or 2M."""
    number, unit = text[:-1], text[-1:].upper()
    if unit not in ("K", "M", "G"):
        number, unit = text, ""
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4096, 64K or 2M")
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def count(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def port(text: str) -> int:
    """A TCP port."""
    if count(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: there are 65535")
    return int(text)


def positive(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def share(text: str) -> float:
    """A positive number of at most 1."""
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of at most 1")
    return value


def numbers(text: str) -> tuple[float, ...]:
    """A number or several, with commas between."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or several: R,G,B") from None


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An input's name and sizes: NAME=1x3x224x224."""
    name, _, sizes = text.rpartition("=")
    if not name or not all(size.isdecimal() for size in sizes.split("x")):
        raise argparse.ArgumentTypeError(f"{text!r} is not like NAME=1x3x224x224")
    return name, tuple(map(int, sizes.split("x")))


def threads(text: str) -> int:
    """A number of threads that this process has cores for."""
    number = count(text)
    try:
        check_threads(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return number


def thread_list(text: str) -> tuple[int, ...]:
    """Several such numbers, with commas between."""
    return tuple(map(threads, text.split(",")))


def peers(text: str) -> tuple[str, ...]:
    """Names of engines, with commas between."""
    from fastrun.commands.bench import peer_names

    try:
        return peer_names(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def sampler(text: str) -> str:
    """A way to search: a name, or what looks like an import path."""
    if text not in SAMPLERS and not re.fullmatch(r"\w+([.:]\w+)+", text):
        raise argparse.ArgumentTypeError(
            f"no sampler {text!r}: there are {', '.join(SAMPLERS)}, and import paths such as "
            "optuna.samplers.QMCSampler"
        )
    return text


def samplers(text: str) -> tuple[str, ...]:
    """Ways to search, with commas between."""
    return tuple(map(sampler, text.split(",")))


def objectives(text: str) -> tuple[str, ...]:
    """What to minimise, with commas between."""
    named = tuple(text.split(","))
    if not set(named) <= set(OBJECTIVES):
        raise argparse.ArgumentTypeError(f"{text!r} names others than {', '.join(OBJECTIVES)}")
    return named


def algorithms(text: str) -> tuple[str, ...]:
    """Algorithms, some with pinned fields: `direct,winograd(mh=2|4)`."""
    from fastrun.kernels.registry import templates

    named = tuple(filter(None, map(str.strip, re.split(r",(?![^()]*\))", text))))
    for name in (words.partition("(")[0] for words in named):
        if name not in templates():
            raise argparse.ArgumentTypeError(
                f"no algorithm {name!r}: there are {', '.join(templates())}"
            )
    return named
