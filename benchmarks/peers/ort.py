"""onnxruntime: its CPU provider with all graph optimisations and bound inputs and outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from fastrun.benchmarks.peers import Array, LoadError, first_line

title = "onnxruntime"
packages = ("onnxruntime",)


def load(
    model: onnx.ModelProto,
    threads: int,
    inner: bool = False,
    entries: Mapping[str, str] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Session:
    """As `Engine.load`; `entries` and `attributes` are further ones of the session's options."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        if not inner:
            return Session(_session(path, threads, entries=entries, attributes=attributes))
        optimised = Path(folder) / "optimised.onnx"
        _session(path, threads, optimised)
        parts = _split(onnx.load(optimised))
        entry, body, exit = (
            part and _session(_saved(part, path), threads, optimise=False) for part in parts
        )
        return Session(body, entry, exit)


class Session:
    """A session whose inputs and outputs stay in place from call to call.

    `entry` and `exit` convert layouts before and after, if given; `call` leaves them out.
    """

    def __init__(self, body: Any, entry: Any = None, exit: Any = None) -> None:
        self._body, self._entry, self._exit = body, entry, exit

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        import onnxruntime as ort

        feeds = dict(inputs)
        if self._entry:
            feeds |= _results(
                self._entry, {i.name: feeds[i.name] for i in self._entry.get_inputs()}
            )
        feeds = {i.name: feeds[i.name] for i in self._body.get_inputs()}
        found = _results(self._body, feeds)
        self._binding = self._body.io_binding()
        # Outputs are written into these results, inputs are read from copies of the feeds.
        self._values = {
            n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in {**feeds, **found}.items()
        }
        for name in feeds:
            self._binding.bind_ortvalue_input(name, self._values[name])
        for name in found:
            self._binding.bind_ortvalue_output(name, self._values[name])
        if self._exit:
            found |= _results(self._exit, {i.name: found[i.name] for i in self._exit.get_inputs()})
            return [found[o.name] for o in self._exit.get_outputs()]
        return list(found.values())

    def call(self) -> None:
        self._body.run_with_iobinding(self._binding)


def _results(session: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _session(
    path: Path,
    threads: int,
    save: Path | None = None,
    optimise: bool = True,
    entries: Mapping[str, str] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    for name, choice in (attributes or {}).items():
        setattr(options, name, choice)
    if save:
        options.optimized_model_filepath = str(save)
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):  # its errors share no base class
            raise LoadError(first_line(error)) from None
        raise


Parts = tuple[onnx.ModelProto | None, onnx.ModelProto, onnx.ModelProto | None]


def _split(model: onnx.ModelProto) -> Parts:
    """An optimised model in three parts: conversions of inputs, the rest, conversions of outputs.

    Optimisation puts a convolution in a blocked layout between a ReorderInput and a ReorderOutput
    node. Inside a network these nodes cancel out.
    """
    graph = model.graph
    outside = {v.name for v in graph.input}
    entry = [n for n in graph.node if n.op_type == "ReorderInput" and n.input[0] in outside]
    results = {v.name for v in graph.output}
    exit = [n for n in graph.node if n.op_type == "ReorderOutput" and n.output[0] in results]
    body = [n for n in graph.node if n not in entry and n not in exit]
    return (
        _part(model, entry) if entry else None,
        _part(model, body),
        _part(model, exit) if exit else None,
    )


def _part(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """A model of some nodes. Tensors that they read but do not compute become inputs."""
    weights = {w.name: w for w in model.graph.initializer}
    made = {y for n in nodes for y in n.output}
    reads = dict.fromkeys(x for n in nodes for x in n.input if x)
    used = {x for n in nodes for x in n.input}
    graph = onnx.helper.make_graph(
        nodes,
        model.graph.name,
        [_float(x) for x in reads if x not in weights and x not in made],
        [_float(y) for n in nodes for y in n.output if y not in used],
        [weights[x] for x in reads if x in weights],
    )
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )


def _saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def _float(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
