"""The errors of models, plans and inputs.

Every message is one line: what is wrong, where it is, what to do.
"""

from __future__ import annotations


class GraphError(ValueError):
    """A model cannot be used."""


class ModelFileError(GraphError):
    """There is no such model, or a file is not a whole ONNX model."""


class UnsupportedError(GraphError):
    """A valid model needs something this package lacks; the message names the node and the need."""


class PlanError(GraphError):
    """A plan does not fit the network, or a file is no plan."""


class InputError(GraphError):
    """An array given to a network does not fit its input."""
