"""Compare the steps of a network with float64, or with another engine."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrun.inputs import read_inputs
from fastrun.options import between, pictures, shapes_of
from fastrun.options import network as network_options
from fastrun.tuner.records.units import UNKNOWN, plural

if TYPE_CHECKING:
    import onnx

    from fastrun.graph.core.model import Array

ENGINES = {"onnxruntime": "ort", "openvino": "openvino"}
DIFFERS = 1


def options(parser: ArgumentParser) -> None:
    network_options(parser)
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="FILE",
        help="inputs, as `fastrun run` takes them (default: normal random numbers)",
    )
    parser.add_argument(
        "--against",
        choices=tuple(ENGINES),
        help="also run another engine, which must be installed, and compare what both compute",
    )
    parser.add_argument(
        "--limit",
        type=between(0, 10, "a positive number"),
        metavar="E",
        help="a step differs if its rms error, relative to the rms of its true result, is above E "
        "(default 1e-3, 0.1 for quantised networks)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    pictures(parser)


def run(arguments: Namespace) -> int:
    """Run every step once, print how far each is off, and name the first that differs."""
    from fastrun.graph.networks import load_network
    from fastrun.graph.passes.pipeline import optimise
    from fastrun.loading import loaded
    from fastrun.tuner.networks.check import check_steps, first_beyond, names_before
    from fastrun.tuner.networks.outputs import distance, limit, normal_inputs

    original = load_network(arguments.model, shapes_of(arguments))
    graph = optimise(original)
    network = loaded(arguments)
    inputs = read_inputs(network.inputs, arguments) if arguments.input else normal_inputs(graph)
    most = arguments.limit or limit(graph)
    checked, found = check_steps(graph, network, inputs)
    others: Mapping[str, Array] = {}
    if arguments.against:
        names = names_before(graph, original, [one.output for one in checked], inputs)
        others = _computed_by(arguments, names, inputs)
    apart = {
        name: distance(x.reshape(found[name].shape), found[name]) for name, x in others.items()
    }
    wrong = first_beyond(checked, most)
    other = next((one for one in checked if not apart.get(one.output, 0.0) <= most), None)
    if arguments.json:
        rows = [
            {**vars(one), **({"apart": apart.get(one.output)} if others else {})} for one in checked
        ]
        first = {"wrong": wrong and wrong.output, "apart": other and other.output}
        print(json.dumps({"limit": most, "first": first, "steps": rows}, indent=1))
        return DIFFERS if wrong or other else 0
    _print(arguments, [(one, apart.get(one.output)) for one in checked])
    if wrong:
        print(
            f"the first step that differs from float64: {wrong.node}, {wrong.work}, by "
            f"{wrong.algorithm}: off by {wrong.own:.1e} of its rms (limit {most:g})"
        )
    else:
        print(f"all {plural(len(checked), 'step')} agree with float64 (limit {most:g})")
    if other:
        print(
            f"the first tensor that differs from {arguments.against}'s: {other.output!r} of "
            f"{other.node}, by {apart[other.output]:.1e} of its rms; ours is off float64 "
            f"by {other.total:.1e}"
        )
    elif others:
        print(f"all {plural(len(apart), 'tensor')} that both have agree with {arguments.against}'s")
    return DIFFERS if wrong or other else 0


def _print(arguments: Namespace, rows: list[tuple[Any, float | None]]) -> None:
    from fastrun.tuner.terminal.display import grid, screen

    heads = ["node", "work", "runs", "own\nerror>", "error\nso far>"]
    heads += [f"from\n{arguments.against}>"] if arguments.against else []
    cells = []
    for one, apart in rows:
        row = [one.node, one.work, one.algorithm, f"{one.own:.1e}", f"{one.total:.1e}"]
        if arguments.against:
            row.append(UNKNOWN if apart is None else f"{apart:.1e}")
        cells.append(row)
    grid(screen(), heads, cells)


def _computed_by(
    arguments: Namespace, names: Mapping[str, str], inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """What another engine computes for our tensors, by their names; `names` has the model's."""
    import onnx

    from fastrun.benchmarks.peers import LoadError, engine, missing
    from fastrun.graph import zoo
    from fastrun.graph.core.errors import UnsupportedError
    from fastrun.graph.frontend.file import read_model

    peer = ENGINES[arguments.against]
    if reason := missing(peer):
        raise UnsupportedError(reason)
    built_in = arguments.model in zoo.NAMES
    model = zoo.build(arguments.model) if built_in else read_model(Path(arguments.model))
    known = {y for node in model.graph.node for y in node.output}
    asked = {name: y for name, y in names.items() if y in known}
    del model.graph.output[:]
    for y in dict.fromkeys(asked.values()):
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(y))
    try:
        results = engine(peer).load(model, arguments.threads).run(_as_declared(model, inputs))
    except LoadError as error:
        raise UnsupportedError(f"{arguments.against} cannot run it: {error}") from None
    values = dict(zip(dict.fromkeys(asked.values()), results, strict=True))
    return {name: values[y] for name, y in asked.items()}


def _as_declared(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs in the element types that the model declares."""
    import onnx

    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    return {
        name: value.astype(onnx.helper.tensor_dtype_to_np_dtype(types[name]))
        for name, value in inputs.items()
    }
