"""Runs an exported library in this process and compares its outputs with float64."""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.aot import ports
from fastrun.graph.aot.export import Export
from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Graph
from fastrun.graph.reference import interpreter
from fastrun.kernels.core.cpu import Cpu


def check(graph: Graph, exported: Export, threads: int = 1) -> dict[str, float | None]:
    """The largest rms error of an output, relative to its rms, for each target.

    None for a target whose code this processor cannot run. Inputs are normal numbers, or integers
    from 0 to 127 that the network takes.
    """
    if exported.targets[0].cpu.triple != Cpu.host().triple:
        return dict.fromkeys(built.target for built in exported.targets)
    draw = np.random.default_rng(0)
    given = ports.inputs(graph)
    inputs = {x.name: x.drawn(draw) for x in given}
    truth = interpreter.run(graph, {x.name: x.numbers(inputs[x.name]) for x in given})
    truth = {x.name: truth[x.name].astype(np.float64) for x in ports.outputs(graph)}
    net = runpy.run_path(str(exported.folder / f"{exported.name}.py"))["Net"]
    # The system's loader gives a library that is loaded already for one of the same path, which an
    # earlier export of this process may be.
    with tempfile.TemporaryDirectory() as folder:
        for file in (f"lib{exported.name}.so", f"{exported.name}.weights"):
            if file in exported.files:
                (Path(folder) / file).symlink_to((exported.folder / file).resolve())
        return _errors(graph, exported, net, Path(folder), inputs, truth, threads)


def _errors(
    graph: Graph,
    exported: Export,
    net: Callable[..., Any],
    folder: Path,
    inputs: Mapping[str, NDArray[np.generic]],
    truth: Mapping[str, NDArray[np.float64]],
    threads: int,
) -> dict[str, float | None]:
    found = dict[str, float | None]()
    for number, built in enumerate(exported.targets, 1):
        try:
            context = net(threads, number, folder)
        except RuntimeError as error:
            if "the processor lacks" not in str(error):
                raise InputError(str(error)) from error
            found[built.target] = None
            continue
        outputs = context.run(*inputs.values())
        context.close()
        found[built.target] = max(
            _error(x.numbers(outputs[x.name]), truth[x.name]) for x in ports.outputs(graph)
        )
    return found


def _error(found: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(found - truth).mean() / (np.square(truth).mean() or 1)))
