"""LSTM, GRU and RNN with all of their attributes; the input's product is one matrix product.

ONNX's own reference implementation ignores lengths of sequences, activations and limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from fastrun.graph.core.model import Array

Function = Callable[[Array], Array]

# Functions of x, alpha and beta, and the defaults of these.
_FUNCTIONS: dict[str, tuple[Callable[[Array, float, float], Array], float, float]] = {
    "relu": (lambda x, a, b: np.maximum(x, 0), 0, 0),
    "tanh": (lambda x, a, b: np.tanh(x), 0, 0),
    "sigmoid": (lambda x, a, b: 0.5 * np.tanh(0.5 * x) + 0.5, 0, 0),
    "affine": (lambda x, a, b: a * x + b, 1, 0),
    "leakyrelu": (lambda x, a, b: np.where(x < 0, a * x, x), 0.01, 0),
    "thresholdedrelu": (lambda x, a, b: np.where(x >= a, x, 0), 1, 0),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), 1, 1),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5),
    "elu": (lambda x, a, b: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x), 1, 0),
    "softsign": (lambda x, a, b: x / (1 + np.abs(x)), 0, 0),
    "softplus": (lambda x, a, b: np.logaddexp(x, 0), 0, 0),
}
_TAKES_ALPHA = ("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")
_TAKES_BETA = ("affine", "scaledtanh", "hardsigmoid")


class _Recurrent(OpRun):
    """A layer that keeps `states` of (directions, batch, hidden) from step to step.

    A subclass computes a step of one direction.
    """

    op_domain = ""
    gates: int
    states = 1
    defaults: Sequence[str]

    def _run(
        self,
        x: Array,
        w: Array,
        r: Array,
        bias: Array | None = None,
        lengths: Array | None = None,
        *initial: Any,
        **_: Any,
    ) -> tuple[Array, ...]:
        batch_first = bool(self._given("layout", 0))
        x = x.swapaxes(0, 1) if batch_first else x
        steps, batch, _width = x.shape
        directions, hidden = len(w), r.shape[-1]
        lengths = np.full(batch, steps) if lengths is None else lengths
        states = [
            np.zeros((directions, batch, hidden), x.dtype)
            if i >= len(initial) or initial[i] is None
            else np.array(initial[i].swapaxes(0, 1) if batch_first else initial[i])
            for i in range(self.states)
        ]
        peepholes = initial[self.states] if len(initial) > self.states else None
        y = np.zeros((steps, directions, batch, hidden), x.dtype)
        backwards = [self._given("direction", "forward") == "reverse", True]
        functions = list(self._functions(directions))
        for d in range(directions):
            own = np.zeros(2 * self.gates * hidden, x.dtype) if bias is None else bias[d]
            peep = None if peepholes is None else np.split(peepholes[d], 3)
            projected = x @ w[d].T
            state = [s[d] for s in states]
            for t in range(steps):
                at = (
                    np.where(lengths > t, lengths - 1 - t, t) if backwards[d] else np.full(batch, t)
                )
                going = (lengths > t)[:, None]
                inputs = projected[at, np.arange(batch)]
                new = self._step(inputs, r[d].T, np.split(own, 2), peep, state, functions[d])
                state = [np.where(going, n, s) for n, s in zip(new, state, strict=True)]
                y[at, d, np.arange(batch)] = np.where(going, state[0], 0)
            for s, last in zip(states, state, strict=True):
                s[d] = last
        if batch_first:
            return (y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in states))
        return (y, *states)

    def _step(
        self,
        inputs: Array,
        r: Array,
        biases: Sequence[Array],
        peepholes: Sequence[Array] | None,
        state: Sequence[Array],
        functions: Sequence[Function],
    ) -> Sequence[Array]:
        """The next states; `inputs` are the input's products, `r` is for the hidden state."""
        raise NotImplementedError

    def _limited(self, x: Array) -> Array:
        limit = self._given("clip", None)
        return x if limit is None else np.clip(x, -limit, limit)

    def _given(self, name: str, default: Any) -> Any:
        value = getattr(self, name, None)
        return default if value is None else value

    def _functions(self, directions: int) -> Iterator[list[Function]]:
        """The activations of each direction, which take their parameters in their order."""
        named = self._given("activations", None) or [*self.defaults] * directions
        alphas = iter(self._given("activation_alpha", None) or ())
        betas = iter(self._given("activation_beta", None) or ())

        def one(name: str) -> Function:
            function, alpha, beta = _FUNCTIONS[name]
            a = next(alphas, alpha) if name in _TAKES_ALPHA else alpha
            b = next(betas, beta) if name in _TAKES_BETA else beta
            return lambda x: function(x, a, b)

        found = [one(name.lower()) for name in named]
        count = len(self.defaults)
        return iter([found[i * count : (i + 1) * count] for i in range(directions)])


class RNN(_Recurrent):
    """One gate."""

    gates, defaults = 1, ("Tanh",)

    def _step(
        self,
        inputs: Array,
        r: Array,
        biases: Sequence[Array],
        peepholes: Sequence[Array] | None,
        state: Sequence[Array],
        functions: Sequence[Function],
    ) -> Sequence[Array]:
        (h,), (f,) = state, functions
        return [f(self._limited(inputs + h @ r + biases[0] + biases[1]))]


class GRU(_Recurrent):
    """Gates: update, reset, hidden."""

    gates, defaults = 3, ("Sigmoid", "Tanh")

    def _step(
        self,
        inputs: Array,
        r: Array,
        biases: Sequence[Array],
        peepholes: Sequence[Array] | None,
        state: Sequence[Array],
        functions: Sequence[Function],
    ) -> Sequence[Array]:
        (h,), (f, g), n = state, functions, state[0].shape[-1]
        wide = inputs + biases[0]
        gates = f(self._limited(wide[:, : 2 * n] + h @ r[:, : 2 * n] + biases[1][: 2 * n]))
        update, reset = gates[:, :n], gates[:, n:]
        if self._given("linear_before_reset", 0):
            other = reset * (h @ r[:, 2 * n :] + biases[1][2 * n :])
        else:
            other = (reset * h) @ r[:, 2 * n :] + biases[1][2 * n :]
        new = g(self._limited(wide[:, 2 * n :] + other))
        return [(1 - update) * new + update * h]


class LSTM(_Recurrent):
    """Gates: input, output, forget, cell."""

    gates, states, defaults = 4, 2, ("Sigmoid", "Tanh", "Tanh")

    def _step(
        self,
        inputs: Array,
        r: Array,
        biases: Sequence[Array],
        peepholes: Sequence[Array] | None,
        state: Sequence[Array],
        functions: Sequence[Function],
    ) -> Sequence[Array]:
        (h, c), (f, g, out) = state, functions
        to_input, to_output, to_forget = peepholes or (0.0, 0.0, 0.0)
        i, o, forget, cell = np.split(inputs + h @ r + biases[0] + biases[1], 4, axis=-1)
        taken = f(self._limited(i + to_input * c))
        kept = f(self._limited(forget + to_forget * c))
        if self._given("input_forget", 0):
            kept = 1 - taken
        new = kept * c + taken * g(self._limited(cell))
        return [f(self._limited(o + to_output * new)) * out(new), new]
