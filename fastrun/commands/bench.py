"""`fastrun bench`: networks and layers against other inference engines.

The one file that reaches up to `benchmarks`, which stands on top of all other packages.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from fastrun.benchmarks import layers, networks, ours, peers, race, report
from fastrun.benchmarks.report import EngineRace
from fastrun.graph import zoo
from fastrun.graph.core.errors import GraphError
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.networks.targets import is_problem
from fastrun.tuner.records.units import plural

NO_PEERS = "none"


def peer_names(text: str) -> tuple[str, ...]:
    """The peers that a list of names means, `none` for no peer at all.

    Raises:
        ValueError: naming the one that does not exist.
    """
    names = () if text == NO_PEERS else tuple(text.split(","))
    for name in names:
        if name not in peers.NAMES:
            raise ValueError(f"no peer {name!r}: there are {', '.join(peers.NAMES)}")
    return names


def run(arguments: Namespace) -> int:
    """Verify every engine, time all in turns, print who is faster."""
    single = [layers.given(text) for text in arguments.targets if is_problem(text)]
    if arguments.layers is not None:
        single += layers.published(arguments.layers)
        if not single:
            raise GraphError(f"no layer's description has {arguments.layers!r} in it")
    names = [text for text in arguments.targets if not is_problem(text)]
    if not single:
        names = names or list(zoo.NAMES)
    for name in names:  # a mistake in the last one would cost what the others took
        networks.check(name, arguments.threads, arguments.db)
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
            of_networks += networks.races(name, arguments.threads, engines, rounds, arguments.db)
            _keep(arguments.json, of_layers + of_networks)
    finally:  # also of a benchmark that ends early
        if of_layers:
            _print(of_layers, arguments.threads, layers.columns(single, probe()))
        if of_networks:
            _print(of_networks, arguments.threads)
            for note in dict.fromkeys(x.note for h in of_networks for x in h.entries if x.samples):
                if note:
                    print(f"{ours.NAME}: {note}")
    return 0


def _keep(path: Path | None, races: Sequence[EngineRace]) -> None:
    """Write what is done so far: an engine's crash may end the process at the next one."""
    if path:
        report.write_json(path, races)


def _print(
    races: Sequence[EngineRace],
    threads: Sequence[int],
    more: dict[str, Callable[[EngineRace], str]] | None = None,
) -> None:
    for count in threads:
        group = [h for h in races if h.threads == count]
        print(f"\n{plural(count, 'thread')}")
        report.times_table(group, more)
        report.means_table(group)
    report.scaling_table(races)
    report.remarks(races)
