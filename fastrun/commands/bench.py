"""Race networks and layers with other inference engines."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastrun.graph.core.errors import GraphError
from fastrun.options import count, limits, limits_of, new_file, shapes, shapes_of, thread_counts
from fastrun.options import database as database_option
from fastrun.tuner.networks.targets import is_problem
from fastrun.tuner.records.units import plural

if TYPE_CHECKING:
    from fastrun.benchmarks.report import EngineRace


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="(default: all built-in networks)"
    )
    parser.add_argument(
        "--layers",
        nargs="?",
        const="",
        metavar="TEXT",
        help="race single layers of published networks: all, or those with TEXT in their name, "
        "group or problem",
    )
    parser.add_argument(
        "--peers",
        type=_peers,
        metavar="A,B",
        help="the other engines: ort, openvino, torch, ncnn, mnn, opencv, or none (default: all "
        "that are installed)",
    )
    parser.add_argument(
        "--threads",
        type=thread_counts,
        default=(1,),
        metavar="T,T",
        help="numbers of threads, such as 1,2 (default 1)",
    )
    parser.add_argument(
        "--rounds",
        type=count,
        metavar="N",
        help="number of samples of each engine (default 15 for layers, 10 for networks)",
    )
    parser.add_argument(
        "--processes",
        type=count,
        default=0,
        metavar="N",
        help="run every engine in N processes of its own, and show the times in each (default: "
        "all engines in one process); for networks",
    )
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write all samples to FILE")
    parser.add_argument(
        "--paper",
        metavar="NAME",
        help="measure the layers of a paper, and print both sides as shares of their peaks: "
        "tvm-winograd, georganas, zhang, im2win, mec; or neocpu: networks (TARGET) by layouts",
    )
    shapes(parser)
    limits(parser)
    database_option(parser)


def run(arguments: Namespace) -> int:
    """Check every engine, race them, print which is faster."""
    if arguments.paper:
        return _paper(arguments.paper, arguments)
    from fastrun.benchmarks import layers, networks, ours, peers, race, report
    from fastrun.graph import zoo
    from fastrun.tuner.machine.probe import probe
    from fastrun.tuner.records.record import NO_LIMITS

    single = [layers.given(text) for text in arguments.targets if is_problem(text)]
    if arguments.layers is not None:
        single += layers.published(arguments.layers)
        if not single:
            raise GraphError(f"no layer's description has {arguments.layers!r} in it")
    names = [text for text in arguments.targets if not is_problem(text)]
    given, bounds = shapes_of(arguments), limits_of(arguments)
    if single and bounds != NO_LIMITS:
        raise GraphError("--max-error and --max-workspace are for networks, not for layers")
    if single and arguments.processes:
        raise GraphError("--processes is for networks, not for layers")
    if not single:
        names = names or list(zoo.NAMES)
    for name in names:  # before anything is timed: a mistake in the last name would cost hours
        networks.check(name, arguments.threads, arguments.db, given, bounds)
    if arguments.json:
        arguments.json.open("a").close()
    installed = report.usable(peers.NAMES if arguments.peers is None else arguments.peers)
    engines = [ours.NAME, *installed]
    overhead = race.overheads(installed) if single else {}
    report.introduce(installed, overhead)
    database = layers.open_database(arguments.db) if single else None
    of_layers: list[EngineRace] = []
    of_networks: list[EngineRace] = []
    try:
        for i, layer in enumerate(single, 1):
            report.notice(f"{i}/{len(single)} {layer.group}: {layer.name}")
            rounds = arguments.rounds or layers.ROUNDS
            of_layers += layers.races(layer, arguments.threads, engines, rounds, database, overhead)
            _keep(arguments.json, of_layers)
        for name in names:
            report.notice(name)
            rounds = arguments.rounds or networks.ROUNDS
            of_networks += networks.races(
                name,
                arguments.threads,
                engines,
                rounds,
                arguments.db,
                given,
                bounds,
                arguments.processes,
            )
            _keep(arguments.json, of_layers + of_networks)
    finally:  # also if the benchmark ends early
        if of_layers:
            _print(of_layers, arguments.threads, layers.columns(single, probe()))
        if of_networks:
            _print(of_networks, arguments.threads)
            for number in arguments.threads:
                print(f"\n{plural(number, 'thread')}, every engine")
                report.engines_table([h for h in of_networks if h.threads == number])
            for note in dict.fromkeys(x.note for h in of_networks for x in h.entries if x.samples):
                if note:
                    print(f"{ours.NAME}: {note}")
    return 0


def _paper(name: str, arguments: Namespace) -> int:
    """Measure the layers or networks of a paper, and print its table beside ours."""
    from fastrun.benchmarks import paper_networks, papers

    if name == papers.NETWORKS:
        targets, threads = arguments.targets or paper_networks.DEFAULT, arguments.threads
        for number in threads:
            print(plural(number, "thread"))
            paper_networks.show([paper_networks.ablation(x, number) for x in targets])
        return 0
    if name not in papers.PAPERS:
        names = ", ".join([*papers.PAPERS, papers.NETWORKS])
        raise GraphError(f"no paper {name!r}: there are {names}")
    paper = papers.PAPERS[name]
    papers.show(paper, papers.rows(paper, arguments.db))
    return 0


def _keep(path: Path | None, races: Sequence[EngineRace]) -> None:
    """Write the results so far: the next engine may crash and end the process."""
    if path:
        from fastrun.benchmarks import report

        report.write_json(path, races)


def _print(
    races: Sequence[EngineRace],
    threads: Sequence[int],
    more: dict[str, Callable[[EngineRace], str]] | None = None,
) -> None:
    from fastrun.benchmarks import report

    for number in threads:
        group = [h for h in races if h.threads == number]
        print(f"\n{plural(number, 'thread')}")
        report.times_table(group, more)
        report.means_table(group)
    report.scaling_table(races)
    report.remarks(races)


def _peers(text: str) -> tuple[str, ...]:
    from fastrun.benchmarks import peers

    names = () if text == "none" else tuple(text.split(","))
    for name in names:
        if name not in peers.NAMES:
            raise ArgumentTypeError(f"no peer {name!r}: there are {', '.join(peers.NAMES)}")
    return names
