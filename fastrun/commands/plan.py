"""`fastrun plan`: what every step of a network runs, and how long it takes."""

from __future__ import annotations

import json
import sys
import warnings
from argparse import Namespace
from typing import Any

from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.networks.load import load
from fastrun.tuner.records.units import UNKNOWN, ms, percent, plural

REPEATS = 20


def run(arguments: Namespace) -> int:
    """Print the plan, expected and measured, and save it if told to."""
    network = loaded(arguments)
    if arguments.save:
        network.plan.save(arguments.save)
    steps = network.profile(REPEATS)
    whole = sorted(network.seconds() for _ in range(REPEATS))[REPEATS // 2]
    if arguments.json:
        print(json.dumps(_document(network, arguments, steps, whole), indent=1))
        return 0
    from fastrun.tuner.terminal.display import grid, screen

    rows = [
        (
            *(step["name"], step["work"], step["algorithm"], step["layouts"]),
            *(ms(step["expected"]) if step["expected"] else UNKNOWN, ms(step["seconds"])),
            percent(step["share"]),
        )
        for step in steps
    ]
    heads = ("node", "work", "runs", "layouts", "expected\nms>", "measured\nms>", "share>")
    grid(screen(), heads, rows)
    print(
        f"{arguments.model}: {plural(len(rows), 'step')}, "
        f"{plural(arguments.threads, 'thread')}, "
        f"{ms(network.plan.seconds)} ms expected, {ms(whole)} ms measured"
    )
    print(f"memory: {network.memory}")
    if arguments.save:
        print(f"plan: {arguments.save}")
    return 0


def loaded(arguments: Namespace) -> Executable:
    """The network that the options of a command say; what loading remarks goes to the user."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        network = load(
            arguments.model,
            arguments.threads,
            arguments.db,
            arguments.policy,
            dict(arguments.shape),
            arguments.plan,
            max_error=arguments.max_error,
            max_workspace=arguments.max_workspace,
        )
    for remark in dict.fromkeys(str(warning.message) for warning in said):
        print(f"fastrun: {remark}", file=sys.stderr)
    return network


def _document(
    network: Executable, arguments: Namespace, steps: list[dict[str, Any]], whole: float
) -> dict[str, Any]:
    """JSON form; seconds and bytes."""
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
