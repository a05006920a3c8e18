"""Lowers LSTM, GRU and RNN: one product of all inputs, then a kernel for all steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastrun.graph.core.model import Array
from fastrun.graph.core.ops import Binary, Concat, MatMul, Recurrent, Reshape, Slice, Transpose
from fastrun.graph.frontend.lowering.site import Site, Unsupported, lowers

_BACKWARDS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
# The activations of a direction that have a kernel, and its cell.
_ACTIVATIONS = {
    ("LSTM", "sigmoid tanh tanh"): "lstm",
    ("GRU", "sigmoid tanh"): "gru",
    ("RNN", "tanh"): "tanh",
    ("RNN", "relu"): "relu",
}
_DEFAULT = {"LSTM": "sigmoid tanh tanh", "GRU": "sigmoid tanh", "RNN": "tanh"}


@lowers("LSTM", "GRU", "RNN")
def _recurrent(site: Site) -> None:
    op = _layer(site)
    x, batch_first = site.inputs[0], bool(site.attribute("layout", 0))
    if batch_first:
        x = site.emit(Transpose((1, 0, 2)), x)
    steps, batch, _ = site.shape_of(x)
    weights = site.constant(1, "weights")
    recurrence = site.constant(2, "recurrence weights")
    ways, rows, hidden = recurrence.shape
    if site.has(4) and (site.constant(4, "lengths of sequences") != steps).any():
        raise Unsupported("sequences of equal lengths")
    if site.has(7) and site.constant(7, "peepholes").any():
        raise Unsupported("no peepholes")
    bias, own = _biases(site, op, ways, hidden)
    x = site.emit(MatMul(), x, site.put(weights.reshape(ways * rows, -1).T))
    x = site.emit(Binary("add"), x, site.put(bias.reshape(-1)))
    inputs = (x, site.inputs[2], own, _initial(site, op, batch_first, (ways, batch, hidden)))
    shape = (steps + op.keeps_cell, ways, batch, hidden)
    whole, last, cell = (*site.outputs, "", "")[:3]
    plain = bool(whole) and not op.keeps_cell and not batch_first
    states = site.emit(op, *inputs, output=whole if plain else "", shape=shape)
    if whole and not plain:
        y = _steps(site, states, 0, steps, "" if batch_first else whole)
        if batch_first:
            site.emit(Transpose((2, 0, 1, 3)), y, output=whole)
    if last:
        ends = [
            _one(site, states, 0 if backwards else steps - 1, way)
            for way, backwards in enumerate(op.backwards)
        ]
        _finish(site, ends, batch_first, (ways, batch, hidden), last)
    if cell:
        ends = [_one(site, states, steps, way) for way in range(ways)]
        _finish(site, ends, batch_first, (ways, batch, hidden), cell)


def _layer(site: Site) -> Recurrent:
    """The operator; other activations and limits have no kernel."""
    kind, direction = site.operator, site.attribute("direction", "forward")
    backwards = _BACKWARDS.get(direction)
    if backwards is None:
        raise site.impossible(f"there is no direction {direction!r}")
    given = " ".join(str(_text(x)).lower() for x in site.attribute("activations", ()))
    own = given or " ".join([_DEFAULT[kind]] * len(backwards))
    cells = [c for (k, names), c in _ACTIVATIONS.items() if k == kind]
    found = [c for c in cells if own == " ".join([_names(kind, c)] * len(backwards))]
    if not found:
        raise Unsupported(f"the activations of a plain {kind} in every direction")
    if site.attribute("clip", None) is not None or site.attribute("input_forget", 0):
        raise Unsupported(f"a plain {kind} without limits")
    before = kind == "GRU" and not site.attribute("linear_before_reset", 0)
    keeps = kind == "LSTM" and len(site.outputs) > 2 and bool(site.outputs[2])
    return Recurrent("gru_before" if before else found[0], backwards, keeps)


def _names(kind: str, cell: str) -> str:
    return next(names for (k, names), c in _ACTIVATIONS.items() if (k, c) == (kind, cell))


def _text(name: bytes | str) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _biases(site: Site, op: Recurrent, ways: int, hidden: int) -> tuple[Array, str]:
    """The bias of the product of the input, and the name of that which a GRU resets."""
    rows = op.gates * hidden
    both = np.zeros((ways, 2 * rows), np.float32)
    if site.has(3):
        both = site.constant(3, "biases")
    ours, theirs = both[:, :rows], both[:, rows:]
    if op.cell != "gru":
        return ours + theirs, ""
    apart = theirs.copy()
    apart[:, 2 * hidden :] = 0
    return ours + apart, site.put(np.ascontiguousarray(theirs[:, 2 * hidden :]))


def _initial(site: Site, op: Recurrent, batch_first: bool, shape: Sequence[int]) -> str:
    """The name of the states before the first step, "" if they are zeros."""
    given = [i for i in (5, 6)[: op.states] if site.has(i)]
    if all(site.is_constant(i) and not site.constant(i, "").any() for i in given):
        return ""
    names = []
    for i in (5, 6)[: op.states]:
        name = site.inputs[i] if site.has(i) else site.put(np.zeros(tuple(shape), np.float32))
        if batch_first and site.has(i):
            name = site.emit(Transpose((1, 0, 2)), name)
        names.append(site.emit(Reshape(), name, shape=(1, *shape)))
    return site.emit(Concat(0), *names) if len(names) > 1 else names[0]


def _steps(site: Site, x: str, first: int, count: int, output: str = "") -> str:
    """Some steps of the states."""
    shape = site.shape_of(x)
    starts, sizes = (first, 0, 0, 0), (count, *shape[1:])
    return site.emit(Slice(starts, sizes, (1, 1, 1, 1)), x, output=output)


def _one(site: Site, x: str, step: int, way: int) -> str:
    """The states of one direction after one step."""
    shape = site.shape_of(x)
    return site.emit(Slice((step, way, 0, 0), (1, 1, *shape[2:]), (1, 1, 1, 1)), x)


def _finish(
    site: Site, ends: Sequence[str], batch_first: bool, shape: tuple[int, ...], output: str
) -> None:
    """Put the states of all directions together as an output of the node."""
    x = site.emit(Concat(1), *ends) if len(ends) > 1 else ends[0]
    if not batch_first:
        site.emit(Reshape(), x, output=output, shape=shape)
        return
    x = site.emit(Reshape(), x, shape=shape)
    site.emit(Transpose((1, 0, 2)), x, output=output)
