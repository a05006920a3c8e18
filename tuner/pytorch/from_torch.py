"""Loads a PyTorch module as `fastrun.load` loads an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.runtime.dynamic import DynamicExecutable
from fastrun.graph.runtime.executable import Executable
from fastrun.tuner.networks.load import load
from fastrun.tuner.records.affinity import Threads

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fastrun.tuner.store.database import Database


def from_torch(
    module: nn.Module,
    example: torch.Tensor | Sequence[torch.Tensor],
    threads: Threads = 1,
    database: Database | str | Path | None = None,
    policy: str = "cached",
    *,
    dynamic_shapes: Any = None,
    max_error: float | None = None,
    max_workspace: int | None = None,
    seconds: float = 60.0,
) -> Executable | DynamicExecutable:
    """A PyTorch module on the CPU, ready to run; PyTorch takes no part in its runs.

    `example` is the tensor that `forward` takes, or all of them in order; only their shapes and
    types count. `dynamic_shapes` leaves sizes open, as `torch.export.export` takes them, such as
    `{"x": {0: torch.export.Dim.DYNAMIC}}`. The inputs of the network have the names of `forward`'s
    parameters. The other arguments are those of `fastrun.load`.

    Weights that need no other layout are shared with the module; the others are copied once, so a
    later change of the module changes nothing here.

    Needs the packages torch and onnxscript.

    Raises:
        ModuleNotFoundError: torch or onnxscript is not installed.
        UnsupportedError: the module is in training mode, or PyTorch cannot export it, or it needs
            an operator that this package lacks.
        As `fastrun.load`.
    """
    # `from fastrun import *` works without PyTorch.
    try:
        import torch

        from fastrun.tuner.pytorch.conversion import converted
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"from_torch needs the Python package {error.name}: install torch and onnxscript "
            "(the extra `torch` of this package)",
            name=error.name,
        ) from None

    name = type(module).__name__
    if module.training:
        raise UnsupportedError(
            f"{name} is in training mode, and networks only run for inference here: call its "
            "eval() first"
        )
    arguments = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    model = converted(module, arguments, dynamic_shapes, name)
    return load(
        model,
        threads,
        database,
        policy,
        max_error=max_error,
        max_workspace=max_workspace,
        seconds=seconds,
    )
