"""Networks in low precision on fastrun and on other engines: times and accuracy side by side.

    python -m fastrun.benchmarks.precision [NAME ...] [--engines A,B] [--threads T,T] [--json FILE]

A NAME is a task with known answers (ocr, angle, photos, digits) or a built-in network, whose
weights are random and whose outputs can only be compared with float32. An engine is `ours`, a peer
in float32 (`ort`, ...), or one in low precision (`ort-u8s8`, ...). `ours-int8` is fastrun on the
file of `ort-u8s8`, `ours-own` on that of its own quantiser. Times are taken in turns in one
process. Accuracy is counted on samples that no calibration has seen. Results are added to FILE: a
later run replaces what it measures again.
"""

from __future__ import annotations

import itertools
import warnings
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from fastrun.benchmarks import accuracy, ours, peers
from fastrun.benchmarks.accuracy.score import scores
from fastrun.benchmarks.accuracy.task import Sample, Task
from fastrun.benchmarks.peers import LoadError, Session, low
from fastrun.benchmarks.peers.low.original import Original
from fastrun.benchmarks.precision_table import (
    ENGINES,
    OWN_INT8,
    OWN_QUANTISED,
    Comparison,
    frame,
    read_json,
    show,
    write_json,
)
from fastrun.benchmarks.race import Entry, calls_of, race_engines
from fastrun.benchmarks.report import EngineRace, notice
from fastrun.graph import zoo
from fastrun.graph.core.errors import GraphError
from fastrun.tuner.records.affinity import check_threads
from fastrun.tuner.terminal.exits import ended, leave

DEFAULT_TASKS = ("ocr", "angle", "photos", "digits", "resnet50", "resnet18", "vgg16", "mobilenetv2")
OWN: dict[str, Callable[[Original], onnx.ModelProto]] = {
    ours.NAME: lambda original: original.model,
    OWN_INT8: lambda original: original.quantised(),
    OWN_QUANTISED: lambda original: original.own(),
}
"""The engines of fastrun, and the files that they run."""

DEFAULT_ENGINES = (*OWN, "ort", "openvino", *low.VARIANTS)
ROUNDS = 10
"""Samples of each engine's time, by default."""
SAMPLES = 300
"""Samples of a task, by default."""

_UNTRAINED = 20  # samples of a network without answers: errors hardly differ from one to the next
_PLACE = Path("build/precision")


class Loader:
    """The sessions of a network on several engines. Those that cannot load it are kept as notes."""

    def __init__(self, original: Original, database: str | None) -> None:
        self._original, self._database = original, database
        self.notes: dict[str, str] = {}

    def float32(self) -> Session:
        """The network on fastrun in float32, which the others are compared with."""
        with _quietly():
            return ours.NetworkSession(self._original.model, 1, self._database)

    def sessions(self, engines: Sequence[str], threads: int) -> dict[str, Session]:
        """The sessions of those engines that can load the network."""
        found = {}
        for engine in engines:
            try:
                found[engine] = self._session(engine, threads)
            except (LoadError, GraphError) as error:
                self.notes[engine] = peers.first_line(error)
        return found

    def _session(self, engine: str, threads: int) -> Session:
        original = self._original
        if engine in OWN:
            with _quietly():
                return ours.NetworkSession(OWN[engine](original), threads, self._database)
        if engine in peers.NAMES:
            return peers.engine(engine).load(original.model, threads)
        return low.VARIANTS[engine].load(original, threads)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of fastrun that nothing has been tuned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compare(
    task: Task,
    engines: Sequence[str],
    threads: Sequence[int],
    rounds: int,
    samples: int,
    database: str | None = None,
    place: Path = _PLACE,
) -> Comparison:
    """Times and scores of a network. Either is left out if `rounds` or `samples` is 0.

    Raises:
        GraphError: fastrun cannot run the network in float32.
    """
    loader = Loader(Original(task.model, task.calibration, place), database)
    counted = {}
    if samples:
        chosen: Iterator[Sample] = itertools.islice(task.samples(), samples)
        counted = scores(chosen, loader.float32(), loader.sessions(engines, 1))
    races = []
    for number in threads if rounds else ():
        inputs = next(task.samples()).inputs
        entries = []
        for engine, session in loader.sessions(engines, number).items():
            session.run(inputs)
            entries.append(Entry(engine, calls_of(session)))
        entries += [Entry(engine, None, note=note) for engine, note in loader.notes.items()]
        raced = tuple(race_engines(entries, number, rounds))
        races.append(EngineRace(task.name, "all", number, raced))
    return Comparison(races, {task.name: counted} if samples else {})


def missing(engine: str) -> str | None:
    """The reason why an engine cannot be used here; None if it can."""
    if engine in OWN:
        return None
    return peers.missing(engine) if engine in peers.NAMES else low.missing(engine)


def usable(engines: Sequence[str]) -> list[str]:
    """The engines that can be used here; prints the reasons why the others cannot."""
    reasons = {name: missing(name) for name in engines}
    for name, reason in reasons.items():
        if reason:
            notice(f"{name} is left out: {reason}")
    return [name for name, reason in reasons.items() if not reason]


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and write the results."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.precision", description=str(__doc__).split("\n")[0]
    )
    tasks = (*accuracy.NAMES, *zoo.NAMES)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(tasks)} (default: most)"
    )
    parser.add_argument(
        "--engines",
        type=lambda text: text.split(","),
        default=DEFAULT_ENGINES,
        metavar="A,B",
        help=f"some of {', '.join(ENGINES)} (default: those that are installed)",
    )
    parser.add_argument(
        "--threads", type=_thread_counts, default=(1,), metavar="T,T", help="default 1"
    )
    parser.add_argument(
        "--rounds", type=_natural, default=ROUNDS, metavar="N", help="of times; 0 times nothing"
    )
    parser.add_argument(
        "--samples", type=_natural, default=SAMPLES, metavar="N", help="of a task; 0 counts nothing"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the results to FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write FILE's table as CSV")
    parser.add_argument(
        "--work", type=Path, default=_PLACE, metavar="FOLDER", help=f"default {_PLACE}"
    )
    parser.add_argument("--db", metavar="URL", help="database of tuned schedules")
    arguments = parser.parse_args(words)
    for name, known in (("names", tasks), ("engines", ENGINES)):
        for text in getattr(arguments, name):
            if text not in known:
                parser.error(f"no {text!r}: there are {', '.join(known)}")
    engines = usable(arguments.engines)
    found = Comparison([])
    if arguments.json and arguments.json.exists():
        found = read_json(arguments.json)
    measured: list[str] = []
    for name in arguments.names or DEFAULT_TASKS:
        if reason := accuracy.missing(name):
            notice(f"{name} is left out: {reason}")
            continue
        notice(name)
        now = _compared(name, engines, arguments)
        found, measured = found.updated(now), [*measured, *now.networks]
        if arguments.json:  # now, because the next engine may crash and end the process
            write_json(arguments.json, found)
    show(found, measured)
    if arguments.csv:
        frame(found).to_csv(arguments.csv, index=False)
    return 0


def _compared(name: str, engines: Sequence[str], arguments: Namespace) -> Comparison:
    few = min(arguments.samples, _UNTRAINED)
    return compare(
        accuracy.task(name),
        engines,
        arguments.threads,
        arguments.rounds,
        arguments.samples if name in accuracy.NAMES else few,
        arguments.db,
        arguments.work,
    )


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _thread_counts(text: str) -> tuple[int, ...]:
    found = tuple(map(_natural, text.split(",")))
    try:
        for number in found:
            check_threads(number)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return found


if __name__ == "__main__":
    leave(ended("precision", main))
