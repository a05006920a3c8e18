"""The true result of a recurrent layer, step by step."""

from __future__ import annotations

import numpy as np

from fastrun.graph.core.model import Array
from fastrun.graph.core.ops import Recurrent
from fastrun.kernels.core.forks import matmul


def recurrence(
    op: Recurrent, x: Array, weights: Array, bias: Array | None, initial: Array | None
) -> Array:
    """The states after each step, as `Recurrent` describes them and its inputs."""
    steps, batch, _ = x.shape
    ways, hidden = len(op.backwards), weights.shape[-1]
    products = x.reshape(steps, batch, ways, -1)
    found = np.zeros((steps + op.keeps_cell, ways, batch, hidden))
    for way, backwards in enumerate(op.backwards):
        state = np.zeros((op.states, batch, hidden)) if initial is None else initial[:, way]
        own = 0.0 if bias is None else bias[way]
        for step in range(steps)[:: -1 if backwards else 1]:
            state = _step(op.cell, products[step, :, way], weights[way].T, own, state)
            found[step, way] = state[0]
        if op.keeps_cell:
            found[steps, way] = state[1]
    return found


def _step(cell: str, x: Array, weights: Array, bias: Array | float, state: Array) -> Array:
    """The states after a step, (states, batch, hidden)."""
    h, n = state[0], state.shape[-1]
    if cell in ("tanh", "relu"):
        total = x + matmul(h, weights)
        return np.stack([np.tanh(total) if cell == "tanh" else np.maximum(total, 0)])
    if cell == "lstm":
        taken, shown, stays, new = np.split(x + matmul(h, weights), 4, axis=1)
        c = _sigmoid(stays) * state[1] + _sigmoid(taken) * np.tanh(new)
        return np.stack([_sigmoid(shown) * np.tanh(c), c])
    gates = _sigmoid(x[:, : 2 * n] + matmul(h, weights[:, : 2 * n]))
    update, reset = gates[:, :n], gates[:, n:]
    last = weights[:, 2 * n :]
    other = reset * (matmul(h, last) + bias) if cell == "gru" else matmul(reset * h, last)
    return np.stack([update * h + (1 - update) * np.tanh(x[:, 2 * n :] + other)])


def _sigmoid(x: Array) -> Array:
    return 0.5 * np.tanh(0.5 * x) + 0.5
