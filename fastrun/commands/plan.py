"""Print what every step of a network runs, in which layouts, how long."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrun.options import network as network_options
from fastrun.tuner.records.units import UNKNOWN, ms, percent, plural

if TYPE_CHECKING:
    from fastrun.graph.runtime.executable import Executable

REPEATS = 20


def options(parser: ArgumentParser) -> None:
    network_options(parser)
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="write the plan to FILE; with it the network runs on any machine, without a database",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: Namespace) -> int:
    """Print the plan with expected and measured times, and save it if an option says so."""
    from fastrun.loading import loaded

    network = loaded(arguments)
    if arguments.save:
        network.plan.save(arguments.save)
    steps = network.profile(REPEATS)
    whole = sorted(network.seconds() for _ in range(REPEATS))[REPEATS // 2]
    if arguments.json:
        print(json.dumps(_document(network, arguments, steps, whole), indent=1))
        return 0
    from fastrun.tuner.terminal.display import grid, screen

    several = arguments.threads > 1
    rows = [
        (
            *(step["name"], step["work"], step["algorithm"], step["layouts"]),
            *(ms(step["expected"]) if step["expected"] else UNKNOWN, ms(step["seconds"])),
            percent(step["share"]),
            *((ms(step["waiting"]), f"{step['imbalance']:.2f}x") if several else ()),
        )
        for step in steps
    ]
    heads = ("node", "work", "runs", "layouts", "expected\nms>", "measured\nms>", "share>")
    further = ("waiting\nms>", "imbalance>") if several else ()
    grid(screen(), (*heads, *further), rows)
    print(
        f"{arguments.model}: {plural(len(rows), 'step')}, "
        f"{plural(arguments.threads, 'thread')}, "
        f"{ms(network.plan.seconds)} ms expected, {ms(whole)} ms measured"
    )
    if several:
        waiting = sum(step["waiting"] for step in steps)
        print(f"threads wait {ms(waiting)} ms each for the others, or for their cores")
    print(f"memory: {network.memory}")
    if arguments.save:
        print(f"plan: {arguments.save}")
    return 0


def _document(
    network: Executable, arguments: Namespace, steps: list[dict[str, Any]], whole: float
) -> dict[str, Any]:
    """The JSON form; seconds and bytes."""
    from fastrun.kernels.core.cpu import Cpu

    return {
        "network": arguments.model,
        "machine": Cpu.host().fingerprint,
        "threads": arguments.threads,
        "inputs": network.inputs,
        "outputs": network.outputs,
        "expected": network.plan.seconds,
        "measured": whole,
        "memory": vars(network.memory),
        "steps": steps,
    }
