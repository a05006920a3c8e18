"""Turns a PyTorch module into an ONNX model in memory that shares the module's weights."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import onnx_ir
import torch
from torch import nn

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.frontend.file import SharedModel

Tensors = tuple[torch.Tensor, ...]


def converted(module: nn.Module, arguments: Tensors, sizes: Any, name: str) -> SharedModel:
    """The model of a module in inference form, as PyTorch exports it.

    `arguments` are examples of what `forward` takes, `sizes` the open ones as `dynamic_shapes` of
    `torch.export.export`, or None. `name` becomes the network's.

    Raises:
        UnsupportedError: PyTorch cannot export the module, or the module changes its state.
    """
    check_packages()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of one part of PyTorch about another
        try:
            program = torch.export.export(module, arguments, dynamic_shapes=sizes, strict=False)
            program = program.run_decompositions(
                {}
            )  # only now changes in place are in its signature
            _check_pure(program.graph_signature)
            exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
        except UnsupportedError:
            raise
        except Exception as error:  # the exporters raise errors of any kind
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[0] if lines else type(error).__name__
            raise UnsupportedError(f"PyTorch cannot export {name}: {reason}") from error
    graph = exported.model.graph
    weights = {}
    for key, value in graph.initializers.items():
        given = value.const_value
        weights[key] = given.numpy()
        value.const_value = onnx_ir.ExternalTensor(
            "memory", 0, given.nbytes, given.dtype, shape=given.shape, name=key
        )
    proto = onnx_ir.serde.serialize_model(exported.model)
    proto.graph.name = name
    return SharedModel(proto, weights)


def check_packages() -> None:
    """Refuse where PyTorch's exporter lacks a package.

    Raises:
        UnsupportedError: naming the package.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise UnsupportedError(
            "PyTorch exports by the package onnxscript: `pip install onnxscript`"
        )


def _check_pure(signature: Any) -> None:
    if signature.buffers_to_mutate:
        raise UnsupportedError(
            "it changes its own state, as batch normalisation does in training, and networks only "
            "run for inference here: call eval() first"
        )
    if changed := [*signature.user_inputs_to_mutate.values()]:
        raise UnsupportedError(f"it changes its input {changed[0]!r} in place")
