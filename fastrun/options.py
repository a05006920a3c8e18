"""Options that several commands share, and the types of their values.

A type reads the text of one argument and raises `argparse.ArgumentTypeError` if it is malformed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrun.tuner.networks.pictures import Preparation
    from fastrun.tuner.records.record import Limits

SAMPLERS = ("gp", "tpe", "random", "exhaustive", "local", "cmaes")
OBJECTIVES = ("time", "error", "workspace")


def network(parser: argparse.ArgumentParser) -> None:
    """Which network, and how its plan is chosen."""
    parser.add_argument("model", metavar="MODEL", help="a built-in network or an ONNX file")
    thread_count(parser)
    parser.add_argument(
        "--policy",
        choices=("cached", "heuristic", "reproducible"),
        default="cached",
        help="cached: use stored results, and the heuristic where there are none (default). "
        "heuristic: use the heuristic only. reproducible: use the choices of cached for one "
        "thread, so that any number of threads gives the same bits",
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="run exactly the plan in FILE (written by `fastrun plan --save`); no choice is made",
    )
    shapes(parser)
    limits(parser)
    max_weights(parser)
    database(parser)


def max_weights(parser: argparse.ArgumentParser) -> None:
    """How much memory the packed weights of a network may take."""
    parser.add_argument(
        "--max-weights",
        type=size,
        metavar="SIZE",
        help="let the packed weights of the network take at most SIZE bytes, such as 64M: Winograd "
        "packs a multiple of the model's, and runs where it gains most (default: no limit)",
    )


def pictures(parser: argparse.ArgumentParser) -> None:
    """How a picture becomes an input."""
    group = parser.add_argument_group(
        "pictures",
        "A picture is resized so that it covers the input, cropped to the centre and normalised: "
        "(value - mean) / std with values 0..255.",
    )
    group.add_argument(
        "--crop",
        type=between(0, math.nextafter(1, 2), "a share of at most 1"),
        default=0.875,
        metavar="SHARE",
        help="part of the width and height that the crop keeps (default 0.875)",
    )
    for name, what, default in (
        ("mean", "mean", (123.675, 116.28, 103.53)),
        ("std", "standard deviation", (58.395, 57.12, 57.375)),
    ):
        group.add_argument(
            f"--{name}",
            type=numbers,
            default=default,
            metavar="R,G,B",
            help=f"{what} of each colour, or one number (default {','.join(map(str, default))})",
        )


def preparation(arguments: argparse.Namespace) -> Preparation:
    """The values of the options that `pictures` declares."""
    from fastrun.tuner.networks.pictures import Preparation

    return Preparation(arguments.crop, arguments.mean, arguments.std)


def budget(parser: argparse.ArgumentParser) -> None:
    """How long a search may take."""
    parser.add_argument(
        "--effort",
        choices=("quick", "normal", "thorough", "exhaustive"),
        help="seconds per problem: 3 for quick, 8 for normal, 60 for thorough, fewer for problems "
        "that stop improving. exhaustive tries every schedule (default normal)",
    )
    parser.add_argument(
        "--seconds",
        type=between(0, math.inf, "a positive number"),
        metavar="S",
        help="wall time of the whole search, instead of the effort's seconds per problem",
    )
    parser.add_argument("--trials", type=count, metavar="N", help="number of trials per problem")


def shapes(parser: argparse.ArgumentParser) -> None:
    """Shapes of inputs."""
    parser.add_argument(
        "--shape",
        type=shape,
        action="append",
        default=[],
        metavar="NAME=1x3x224x224",
        help="the shape of an input; needed where the model leaves a size open",
    )


def shapes_of(arguments: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """The shapes that are given, by the names of the inputs.

    Raises:
        InputError: an input has two.
    """
    sets = shape_sets(arguments)
    if len(sets) > 1:
        from fastrun.graph.core.errors import InputError

        raise InputError(f"{len(sets)} shapes of inputs are given: this command takes one")
    return sets[0]


def shape_sets(arguments: argparse.Namespace) -> list[dict[str, tuple[int, ...]]]:
    """All combinations of the shapes that are given, by the names of the inputs."""
    given: dict[str, list[tuple[int, ...]]] = {}
    for name, sizes in arguments.shape:
        given.setdefault(name, []).append(sizes)
    return [dict(zip(given, one, strict=True)) for one in itertools.product(*given.values())]


def thread_count(parser: argparse.ArgumentParser) -> None:
    """On how many threads a kernel runs."""
    parser.add_argument(
        "--threads",
        type=threads,
        default=1,
        metavar="T",
        help="number of threads a kernel runs on; auto: as many as this process can keep busy "
        "(default 1)",
    )


def threads(text: str) -> int:
    """A number of threads, or `auto`."""
    from fastrun.tuner.records.affinity import thread_number

    return thread_number("auto") if text == "auto" else count(text)


def core_list(text: str) -> tuple[int, ...]:
    """Numbers of cores, such as 0,2 or 4-7."""
    found = list[int]()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            raise argparse.ArgumentTypeError(f"{text!r} names no cores: give numbers such as 4-7")
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))


def thread_counts(text: str) -> tuple[int, ...]:
    """Numbers of threads, such as 1,2: each once."""
    return tuple(dict.fromkeys(map(threads, text.split(","))))


def conditions(
    parser: argparse.ArgumentParser,
    both: bool = False,
    limited: bool = True,
    several: bool = False,
) -> None:
    """The conditions of measurements, the limits of schedules, and the database.

    With `both` and `several`, both regimes and several numbers of threads may be named.
    """
    if several:
        parser.add_argument(
            "--threads",
            type=thread_counts,
            default=(1,),
            metavar="T,T",
            help="numbers of threads that kernels run on, such as 2 or 1,2; each is searched for "
            "itself, in equal parts of the time (default 1)",
        )
    else:
        thread_count(parser)
    regime(parser, both)
    if limited:
        limits(parser)
    database(parser)


def limits(parser: argparse.ArgumentParser) -> None:
    """The limits of a schedule's error and workspace."""
    parser.add_argument(
        "--max-error",
        type=between(0, 1, "an error between 0 and 1"),
        metavar="E",
        help="use only schedules whose rms error against float64 is at most E times the output's "
        "rms, such as 2e-6 (default: any schedule that passed the check); of a network it is the "
        "error of its outputs on normal inputs, and layers get less where theirs add up; from 2e-4 "
        "on, layers may compute with 16 bits, which gains most at 1e-3",
    )
    parser.add_argument(
        "--max-workspace",
        type=size,
        metavar="SIZE",
        help="use only schedules that need at most SIZE bytes beside their operands, such as 64K "
        "or 2M (default: no limit)",
    )


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The values of the options that `limits` declares."""
    from fastrun.tuner.records.record import Limits

    return Limits(arguments.max_error, arguments.max_workspace)


def regime(parser: argparse.ArgumentParser, both: bool = False) -> None:
    """What the caches hold."""
    finals = ". both: search with hot, run the finals in both" if both else ""
    parser.add_argument(
        "--regime",
        choices=("hot", "cold-weights", *(["both"] if both else [])),
        default="hot",
        help="what the caches hold when a kernel starts: everything for hot, all but the weights "
        f"for cold-weights (default hot){finals}",
    )


def database(parser: argparse.ArgumentParser) -> None:
    """Where records are."""
    parser.add_argument(
        "--db",
        metavar="URL",
        help="the database: a file or an SQLAlchemy URL (default: a file in the cache folder)",
    )


def between(low: float, high: float, what: str) -> Callable[[str], float]:
    """The type of a number above `low` and below `high`; the message says that it is not `what`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = low
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


def new_file(text: str) -> Path:
    """A file to be written, in a folder that exists."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} for {text!r}")
    if not path.exists():
        _check_room(path.parent, text)
    elif not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def new_folder(text: str) -> Path:
    """A folder that files can be written into; it need not exist yet."""
    path = Path(text)
    there = next((one for one in (path, *path.absolute().parents) if one.exists()), path)
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{str(there)!r} is a file, no folder")
    _check_room(there, text)
    return path


def _check_room(folder: Path, text: str) -> None:
    """Refuse a folder in which no file can be made."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from error


def size(text: str) -> int:
    """Bytes, as in 4096, 64K or 2M."""
    number, unit = text[:-1], text[-1:].upper()
    if unit not in ("K", "M", "G"):
        number, unit = text, ""
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4096, 64K or 2M")
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def share(text: str) -> float:
    """A share such as `0.5%` or `0.005`."""
    number, percent, rest = text.partition("%")
    try:
        found = float(number) / (100 if percent else 1)
    except ValueError:
        found = math.nan
    if rest or not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: give 0.5% or 0.005")
    return found


def count(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def numbers(text: str) -> tuple[float, ...]:
    """One number, or one for each colour: 123.7,116.3,103.5."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number, or three as in R,G,B"
        ) from None


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An input's name and sizes: NAME=1x3x224x224."""
    name, _, sizes = text.rpartition("=")
    if not name or not all(size.isdecimal() for size in sizes.split("x")):
        raise argparse.ArgumentTypeError(f"{text!r} is not like NAME=1x3x224x224")
    return name, tuple(map(int, sizes.split("x")))


def sampler(text: str) -> str:
    """A sampler's name, or what looks like an import path."""
    if text not in SAMPLERS and not re.fullmatch(r"\w+([.:]\w+)+", text):
        raise argparse.ArgumentTypeError(
            f"no sampler {text!r}: there are {', '.join(SAMPLERS)}, and import paths such as "
            "optuna.samplers.QMCSampler"
        )
    return text


def samplers(text: str) -> tuple[str, ...]:
    """Several samplers, with commas between."""
    return tuple(map(sampler, text.split(",")))


def objectives(text: str) -> tuple[str, ...]:
    """What a sampler minimises, with commas between."""
    named = tuple(text.split(","))
    if not set(named) <= set(OBJECTIVES):
        raise argparse.ArgumentTypeError(f"{text!r} names others than {', '.join(OBJECTIVES)}")
    return named


def algorithms(text: str) -> tuple[str, ...]:
    """Algorithms, some with pinned fields: `direct,winograd(mh=2|4)`."""
    from fastrun.kernels.registry import every_template

    named = tuple(filter(None, map(str.strip, re.split(r",(?![^()]*\))", text))))
    for name in (words.partition("(")[0] for words in named):
        if name not in every_template():
            raise argparse.ArgumentTypeError(
                f"no algorithm {name!r}: there are {', '.join(every_template())}"
            )
    return named
