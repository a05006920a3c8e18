"""What can be wrong with a model."""

from __future__ import annotations


class GraphError(ValueError):
    """A model that cannot be used. The message is one line: what is wrong, where, what to do."""


class ModelFileError(GraphError):
    """No such model, or a file that is not a whole ONNX model."""


class UnsupportedError(GraphError):
    """A valid model that needs something this package lacks; names the node and the need."""


class PlanError(GraphError):
    """A plan that does not fit the network or is no plan. The message is one line."""


class InputError(GraphError):
    """An array given to a network is not what it takes."""
