"""Print what every step of a network runs, in which layouts, how long."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrun.kernels.core.whole_file import write_whole
from fastrun.options import network as network_options
from fastrun.options import new_file
from fastrun.tuner.records.units import UNKNOWN, ms, percent, plural

if TYPE_CHECKING:
    from fastrun.graph.runtime.executable import Executable

REPEATS = 20


def options(parser: ArgumentParser) -> None:
    network_options(parser)
    parser.add_argument(
        "--save",
        type=new_file,
        metavar="FILE",
        help="write the plan to FILE; with it the network runs on any machine, without a database",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    pictures = parser.add_argument_group("pictures of a run")
    pictures.add_argument(
        "--trace",
        type=new_file,
        metavar="FILE",
        help="write what each thread did when, for chrome://tracing or ui.perfetto.dev (.json)",
    )
    pictures.add_argument(
        "--svg",
        type=new_file,
        metavar="FILE",
        help="draw the graph with the times of its nodes (.svg)",
    )
    pictures.add_argument(
        "--annotate",
        type=new_file,
        metavar="FILE",
        help="write the optimised network with algorithm, layouts and microseconds as metadata of "
        "its nodes, which Netron shows (.onnx)",
    )


def run(arguments: Namespace) -> int:
    """Print the plan with expected and measured times, and save it if an option says so."""
    from fastrun.loading import loaded

    _check_folders(arguments)
    network = loaded(arguments)
    if arguments.save:
        network.plan.save(arguments.save)
    steps = network.profile(REPEATS)
    whole = sorted(network.seconds() for _ in range(REPEATS))[REPEATS // 2]
    _draw(network, arguments, steps, whole)
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
    grid(screen(), (*heads, *further), rows, below="runs")
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
    for name in _PICTURES:
        if path := getattr(arguments, name):
            print(f"{name}: {path}")
    return 0


_PICTURES = {"trace": ".json", "svg": ".svg", "annotate": ".onnx"}


def _check_folders(arguments: Namespace) -> None:
    """Refuse files that cannot be written, before anything is computed."""
    from fastrun.graph.core.errors import InputError

    for name, ending in _PICTURES.items():
        path = getattr(arguments, name)
        if path and (path.suffix != ending or not path.parent.is_dir()):
            raise InputError(f"{path}: give a file that ends in {ending}, in a folder that exists")
    if arguments.annotate and str(arguments.annotate) == arguments.model:
        raise InputError(f"{arguments.annotate}: the annotated network needs a name of its own")


def _draw(
    network: Executable, arguments: Namespace, steps: list[dict[str, Any]], whole: float
) -> None:
    """Write the pictures that are asked for."""
    title = f"{Path(arguments.model).name}, {plural(arguments.threads, 'thread')}"
    if arguments.trace:
        from fastrun.tuner.machine.probe import on_file
        from fastrun.tuner.report.trace import trace

        rows = network.timeline(REPEATS)
        write_whole(arguments.trace, json.dumps(trace(rows, title, on_file())))
    if arguments.svg or arguments.annotate:
        from fastrun.graph.networks import load_network
        from fastrun.graph.passes.pipeline import optimise
        from fastrun.tuner.report.network_graph import annotated, drawing, task_times

        graph = optimise(load_network(arguments.model, network.inputs))
        times = task_times(graph, network, steps)
        if arguments.svg:
            text = drawing(graph, times, title, whole)
            write_whole(arguments.svg, text)
        if arguments.annotate:
            write_whole(arguments.annotate, annotated(graph, times).SerializeToString())


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
