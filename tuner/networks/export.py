"""Export a network that was tuned here, or elsewhere, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastrun.graph.aot.export import Export
from fastrun.graph.aot.export import export as export_graph
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.plan import Plan
from fastrun.tuner.networks.load import load

if TYPE_CHECKING:
    import onnx

    from fastrun.tuner.store.database import Database


def export(
    source: str | Path | onnx.ModelProto,
    folder: str | Path,
    targets: Sequence[str] = ("native",),
    *,
    threads: int = 1,
    plan: Plan | str | Path | None = None,
    database: Database | str | Path | None = None,
    policy: str = "cached",
    shapes: Mapping[str, Sequence[int]] | None = None,
    name: str | None = None,
    embed: bool = False,
) -> Export:
    """Write a network as a C library that needs neither Python nor a compiler to be made.

    `targets` are kinds of processors of one architecture, such as "x86-64-v3", the best first; the
    library runs the first that its processor supports. "native" is this machine: its plan is chosen
    by `database` and `policy` for `threads`, as `fastrun.load` does. Other targets follow `plan`,
    if one is given, else the heuristics. `name` is the prefix of functions and files. With `embed`
    the weights lie in the library.

    What is written: lib`name`.so, lib`name`.a, `name`.h, `name`.weights, example.c, Makefile,
    `name`.py (a loader that needs numpy only) and `name`.plan.

    Raises:
        ExportError: a target is unknown or of another architecture than the first, the name is no
            identifier of C, or the weights are too large to be embedded.
        GraphError: the model or the plan cannot be used.
        OSError: the folder cannot be written.
    """
    graph = optimise(load_network(source, shapes))
    if isinstance(plan, str | Path):
        plan = Plan.load(plan)
    own: dict[str, Plan] = {}
    if plan is None and "native" in targets:
        own["native"] = load(source, threads, database, policy, shapes).plan
    elif plan is not None:
        own = dict.fromkeys(targets, plan)
    return export_graph(graph, Path(folder), targets, own, name, embed, threads)
